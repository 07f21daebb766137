"""pocketlm generate: the text on stdout, all else on stderr, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import COMMAND, pocketlm

PROMPT = "Kubernetes is a"
LONG_RUN = [*"generate --max-tokens 500 --num-return-sequences 16 --temperature 1".split(), PROMPT]


def test_the_text_alone_is_on_stdout() -> None:
    result = pocketlm("generate", PROMPT, "--seed", "3", "--max-length", "20")
    assert result.returncode == 0
    assert result.stdout.startswith(PROMPT) and result.stdout.endswith("\n")
    assert "seed 3, 17 tokens in" in result.stderr


def test_the_same_seed_gives_the_same_text_and_json_says_the_rest() -> None:
    plain = pocketlm("generate", PROMPT, "--seed", "5")
    result = pocketlm("generate", PROMPT, "--seed", "5", "--json")
    answer = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert answer["generated_text"] + "\n" == plain.stdout
    assert answer["model"] == "bundled" and answer["prompt"] == PROMPT
    assert answer["parameters"] == {
        "max_length": 50,
        "temperature": 0.7,
        "top_k": 50,
        "top_p": 1.0,
        "seed": 5,
        "num_return_sequences": 1,
    }


def test_several_sequences_follow_one_another() -> None:
    options = ("--num-return-sequences", "3", "--seed", "1", "--max-tokens", "8", "--temperature", "1")
    answer = json.loads(pocketlm("generate", PROMPT, *options, "--json").stdout)
    result = pocketlm("generate", PROMPT, *options)
    assert result.stdout == "".join(text + "\n" for text in answer["generated_texts"])
    assert "--- 2 of 3, seed 2" in result.stderr


def test_a_dash_reads_the_prompt_from_stdin() -> None:
    options = ("--temperature", "0", "--max-tokens", "5")
    assert (
        pocketlm("generate", "-", *options, stdin=PROMPT + "\n").stdout
        == pocketlm("generate", PROMPT, *options).stdout
    )


def test_stop_may_be_given_many_times() -> None:
    options = ("--temperature", "0", "--max-tokens", "30", "--json")
    text = json.loads(pocketlm("generate", PROMPT, *options).stdout)["generated_text"]
    words = text.removeprefix(PROMPT).split()
    result = pocketlm("generate", PROMPT, *options, "--stop", "never there", "--stop", words[2])
    answer = json.loads(result.stdout)
    assert answer["finish_reason"] == "stop"
    assert text.startswith(answer["generated_text"]) and words[2] not in answer["generated_text"]


def test_verbose_says_how_the_model_was_loaded() -> None:
    result = pocketlm("generate", PROMPT, "--max-tokens", "2", "--verbose", "--num-threads", "1")
    assert "num_threads=1: as configured" in result.stderr
    assert "num_threads" not in pocketlm("generate", PROMPT, "--max-tokens", "2").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["", "--seed", "1"], 1, "error: Prompt is required\n"),
        (
            [PROMPT, "--temperature", "2.1"],
            1,
            "error: temperature must be a number between 0.0 and 2.0, got 2.1\n",
        ),
        (
            [PROMPT, "--num-return-sequences", "0"],
            1,
            "error: num_return_sequences must be an integer between 1 ",
        ),
        ([PROMPT, "--model", "no/such/folder"], 1, "error: "),
        (
            [PROMPT, "--dtype", "int3"],
            2,
            "error: dtype: input should be 'auto', 'float32', 'bfloat16', 'int8' or 'int4', got 'int3'\n",
        ),
        ([PROMPT, "--kv-cache-memory", "1kB"], 2, "kv_cache_memory"),
        ([PROMPT, "--temprature", "1"], 2, "--temperature"),
    ],
)
def test_a_wrong_option_is_one_line_and_an_exit_code(arguments: list[str], code: int, message: str) -> None:
    result = pocketlm("generate", *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    result = subprocess.run([*COMMAND, "generate", "-"], input=b"\xff\xfe", capture_output=True, timeout=60)
    assert result.returncode == 1 and b"not UTF-8" in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_leaves_quietly() -> None:
    with subprocess.Popen(
        [*COMMAND, *LONG_RUN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(len(PROMPT) + 5).startswith(PROMPT)  # it is generating
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert "Traceback" not in process.stderr.read()


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes")
def test_a_closed_pipe_ends_it_quietly() -> None:
    with subprocess.Popen(
        [*COMMAND, *LONG_RUN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(len(PROMPT) + 5)
        process.stdout.close()
        assert process.wait(timeout=20) != 0
        errors = process.stderr.read()
        assert "Traceback" not in errors and "Exception" not in errors
