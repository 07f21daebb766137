"""pocketlm explore: tokens, distributions and answers side by side."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from command import pocketlm
from terminal import CTRL_C, terminal

from pocketlm import LLM, SamplingParams
from pocketlm.cli.exploration import (
    Answer,
    Context,
    Experiment,
    Exploration,
    Token,
    num_candidates,
    probabilities,
)
from pocketlm.cli.exploration_view import print_exploration

PROMPT = "The future of AI is"
HALVES = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    result = pocketlm("explore", PROMPT, "--seed", "3", "--json")
    assert result.returncode == 0 and result.stdout.count("\n") == 1
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


def test_the_tokens_of_the_prompt_and_the_share_of_the_window(answer: dict[str, Any], llm: LLM) -> None:
    tokens = answer["prompt_tokens"]
    assert [token["id"] for token in tokens] == llm.model.tokenizer.encode(PROMPT)
    assert "".join(token["text"] for token in tokens) == PROMPT
    longest = len(tokens) + 60
    assert answer["context"] == {
        "window": 512,
        "prompt_tokens": len(tokens),
        "longest_tokens": longest,
        "used_percent": round(100 * longest / 512, 1),
    }


def test_the_distributions_are_those_that_the_sampler_draws_from(answer: dict[str, Any], llm: LLM) -> None:
    params = SamplingParams(max_tokens=1, temperature=0, logprobs=10)
    [output] = llm.generate(PROMPT, params)
    [completion] = output.outputs
    assert completion.logprobs is not None
    expected = {i: math.exp(entry.logprob) for i, entry in completion.logprobs[0].items()}
    by_temperature = {each["temperature"]: each for each in answer["distributions"]}
    assert list(by_temperature) == [0.1, 0.7, 1.0, 1.5]
    found = {token["id"]: token["probability"] for token in by_temperature[1.0]["tokens"]}
    assert found == pytest.approx(expected, rel=1e-4)
    for each in by_temperature.values():
        shares = [token["probability"] for token in each["tokens"]]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) + each["other_probability"] == pytest.approx(1)
        assert len(shares) + each["other_tokens"] == 8192
    likeliest = [each["tokens"][0]["probability"] for each in by_temperature.values()]
    assert likeliest == sorted(likeliest, reverse=True)  # the hotter, the flatter


def test_each_answer_is_what_generate_gives_with_that_one_parameter_changed(answer: dict[str, Any]) -> None:
    assert answer["seed"] == 3
    varied = {each["parameter"]: each for each in answer["experiments"]}
    assert {name: [a["value"] for a in each["answers"]] for name, each in varied.items()} == {
        "temperature": [0.1, 0.7, 1.0, 1.5],
        "max_tokens": [10, 30, 60],
        "top_k": [1, 10, 50, 0],
        "top_p": [0.3, 0.6, 0.9, 1.0],
    }
    assert varied["top_k"]["fixed"] == {"temperature": 0.7, "max_tokens": 30, "top_p": 1.0}
    options = ("--seed", "3", "--max-tokens", "30")
    for parameter, flag, index in (("temperature", "--temperature", 3), ("top_p", "--top-p", 1)):
        text = varied[parameter]["answers"][index]
        plain = pocketlm("generate", PROMPT, *options, flag, str(text["value"]))
        assert plain.stdout == PROMPT + text["text"] + "\n"


def test_values_may_be_chosen_and_a_seed_is_drawn_and_told() -> None:
    options = [*"--temperature 0 --temperature 2 --max-tokens 3 --top-k 5 --top-p 0.5 --json".split(), PROMPT]
    first = json.loads(pocketlm("explore", *options).stdout)
    assert [each["temperature"] for each in first["distributions"]] == [0, 2]
    greedy = first["distributions"][0]["tokens"]
    assert [token["probability"] for token in greedy] == [1.0] + 9 * [0.0]
    assert json.loads(pocketlm("explore", *options, "--seed", str(first["seed"])).stdout) == first


@pytest.mark.parametrize(
    ("params", "count"),
    [
        (SamplingParams(), 4),
        (SamplingParams(temperature=0), 1),
        (SamplingParams(top_k=2), 2),
        (SamplingParams(top_k=3), 4),  # the third and the fourth are equal
        (SamplingParams(top_k=9), 4),
        (SamplingParams(top_p=0.5), 1),
        (SamplingParams(top_p=0.6), 2),
        (SamplingParams(top_p=0.6, top_k=1), 1),
        (SamplingParams(top_p=0.7, temperature=2.0), 4),
    ],
)
def test_how_many_tokens_top_k_and_top_p_leave(params: SamplingParams, count: int) -> None:
    assert num_candidates(HALVES, params) == count


def test_temperature_sharpens_and_flattens() -> None:
    np.testing.assert_allclose(probabilities(HALVES, 1.0), [0.5, 0.25, 0.125, 0.125], rtol=1e-6)
    np.testing.assert_allclose(probabilities(HALVES, 0.5) * 22, [16, 4, 1, 1], rtol=1e-6)
    np.testing.assert_array_equal(probabilities(HALVES, 0), [1, 0, 0, 0])


@pytest.mark.parametrize("columns", [80, 40])
def test_it_fits_into_the_terminal(columns: int) -> None:
    with terminal("explore", PROMPT, "--seed", "3", columns=columns, lines=200) as shown:
        assert shown.wait() == 0
    lines = shown.screen.splitlines()
    [pieces] = [i for i, line in enumerate(lines) if line.startswith("The ·future ·of ·AI")]
    assert lines[pieces - 1] == "The prompt is 5 tokens"
    assert lines[pieces + 1].split() == ["440", "1310", "303", "2788", "306"]
    [likeliest, *_] = [line for line in lines if line.startswith("·the ")]
    assert re.search(r"█\S* +9\d\.\d%", likeliest)
    # A column of its own for each temperature, or as many as there is room for.
    headings = [line.split("temperature")[1:] for line in lines if line.startswith("temperature ")]
    assert [len(values) for values in headings] == ([4] if columns == 80 else [2, 2])
    assert "seed 3" in shown.screen
    assert {"43", "46"} <= shown.colors  # pieces on yellow and cyan


def test_without_colour_the_pieces_still_stand_apart() -> None:
    with terminal("explore", PROMPT, environment={"NO_COLOR": "1"}, lines=200) as shown:
        assert shown.wait() == 0
    assert shown.colors == set()
    assert "The ·future ·of ·AI" in shown.screen


def test_an_answer_without_a_space_is_folded_and_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    answers = [Answer(i, 100 * "x", 25, "length", 1) for i in range(4)]
    found = Exploration(
        model="bundled",
        prompt="y",
        seed=1,
        prompt_tokens=[Token(1, "y")],
        context=Context(512, 1, 26),
        distributions=[],
        experiments=[Experiment("top_k", {"max_tokens": 25}, answers)],
    )
    print_exploration(found)
    answered = capsys.readouterr().out.partition("Top-k")[2].partition("candidates:")[0]
    assert answered.count("x") == 400


def test_control_characters_of_a_prompt_are_spelled_out() -> None:
    result = pocketlm("explore", "a\x1b[31m\tb", "--max-tokens", "1")
    assert result.returncode == 0
    assert "\x1b" not in result.stdout and "\\x1b" in result.stdout and "\\t" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([""], 1, "error: the prompt is empty"),
        (
            [PROMPT, "--temperature", "2.5"],
            1,
            "error: temperature must be a number between 0.0 and 2.0, got 2.5",
        ),
        ([PROMPT, "--top-p", "0"], 1, "error: top_p must be a number above 0.0"),
        ([PROMPT, "--model", "no/such/folder"], 1, "error: "),
        ([PROMPT, "--max-model-len", "4"], 1, "error: the prompt has 5 tokens and the context window is 4"),
        ([PROMPT, "--dtype", "int3"], 2, "error: dtype: "),
        ([], 2, "Missing argument"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(arguments: list[str], code: int, message: str) -> None:
    result = pocketlm("explore", *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr and "Traceback" not in result.stderr


def test_ctrl_c_leaves_quietly() -> None:
    many = [word for i in range(200) for word in ("--temperature", f"{1 + i / 1000}")]
    with terminal("explore", PROMPT, "--max-tokens", "400", *many) as shown:
        shown.wait_for("answering")
        shown.send(CTRL_C)
        assert shown.wait(timeout_s=20) == 130
    assert "Traceback" not in shown.written
