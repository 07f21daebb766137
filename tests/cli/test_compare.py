"""pocketlm compare: a row for each model, whatever becomes of the others."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import IO

import psutil
import pytest
from checkpoints import write_checkpoint
from command import COMMAND, pocketlm
from terminal import CTRL_C, terminal

PROMPT = "Kubernetes is a"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("models") / "tiny", seed=1))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its name is markup, so that a page has something to get wrong."""
    folder = write_checkpoint(tmp_path_factory.mktemp("models") / "<i>damaged", seed=1)
    (folder / "model.safetensors").write_bytes(b"not a checkpoint")
    return str(folder)


def test_each_model_has_its_row_in_the_order_given(tiny: str, damaged: str) -> None:
    result = pocketlm("compare", damaged, "bundled", tiny, "--max-tokens", "20", "--json")
    answer = json.loads(result.stdout)
    assert result.returncode == 1  # one failed
    assert [row["model"] for row in answer["models"]] == [damaged, "bundled", tiny]
    failed, bundled, small = answer["models"]
    assert not failed["ok"] and "model.safetensors" in failed["error"] and "load_s" not in failed
    assert bundled["parameters"] == 6_967_296 and bundled["ok"] and small["ok"]
    for row in (bundled, small):
        assert row["num_tokens"] == 20
        assert row["tokens_per_second"] == pytest.approx(20 / row["inference_s"])
        assert row["memory_mib"] == pytest.approx(row["memory_after_mib"] - row["memory_before_mib"])
        assert 0 < row["memory_before_mib"] <= row["peak_memory_mib"] >= row["memory_after_mib"]
        assert row["load_s"] > 0 and row["dtype"] in ("int8", "float32")
    assert bundled["memory_mib"] > 7  # a byte a parameter
    assert f"loading {tiny} (3 of 3)" in result.stderr


def test_memory_is_true_whatever_ran_before(tiny: str) -> None:
    """A model measured after another one finds none of its memory."""
    rows = json.loads(pocketlm("compare", tiny, "shape:distilgpt2", tiny, "--json").stdout)["models"]
    assert [row["ok"] for row in rows] == [True, True, True]
    assert rows[1]["memory_mib"] > 82  # a byte a parameter
    assert abs(rows[2]["peak_memory_mib"] - rows[0]["peak_memory_mib"]) < 20


def test_the_text_is_what_generate_gives_with_the_seed_it_names() -> None:
    answer = json.loads(pocketlm("compare", "--json", "--max-tokens", "8").stdout)
    [row] = answer["models"]  # the bundled model, when none is named
    options = ("--seed", str(answer["seed"]), "--max-tokens", "8")
    assert pocketlm("generate", PROMPT, *options).stdout == PROMPT + row["output"] + "\n"


def test_flags_of_the_engine_reach_the_model() -> None:
    result = pocketlm("compare", "bundled", "--dtype", "float32", "--num-threads", "1", "--json")
    answer = json.loads(result.stdout)
    assert answer["models"][0]["dtype"] == "float32" and answer["num_threads"] == 1


def test_as_text_it_has_the_figures_the_bars_and_the_output(tiny: str, damaged: str) -> None:
    result = pocketlm("compare", "bundled", damaged, tiny, "--prompt", "Hello")
    assert "tokens/s" in result.stdout and "█" in result.stdout and "(int8): Hello" in result.stdout
    assert "6.97M" in result.stdout and "failed" in result.stdout
    assert "\x1b" not in result.stdout + result.stderr
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


def test_text_of_a_model_gives_the_terminal_no_orders(tiny: str) -> None:
    """A byte-level model with random weights writes any control character."""
    result = pocketlm("compare", tiny, "--max-tokens", "50", "--prompt", "\x1b[31mred")
    assert result.returncode == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\x80-\x9f]", result.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a folder's name is always text")
def test_a_name_that_is_no_utf_8_has_its_row(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    result = pocketlm("compare", "./tiny\udcff", "--json", "--html", str(file))
    [row] = json.loads(result.stdout)["models"]
    assert (result.returncode, row["model"], row["ok"]) == (1, "./tiny?", False)
    assert "./tiny? does not exist" in file.read_text(encoding="utf-8")


class Page(HTMLParser):
    """The tags of a page, and what it would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [name for name, _ in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_the_page_is_one_file_without_script_or_network(tiny: str, damaged: str, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    result = pocketlm("compare", damaged, tiny, "--html", str(file), "--prompt", "<b>&amp;", "--json")
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("svg") == 4 and page.tags.count("tr") == 3
    assert page.links == [] and "script" not in page.tags and "i" not in page.tags
    assert "url(" not in text and "@import" not in text
    assert "&lt;b&gt;&amp;amp;" in text and "&lt;i&gt;damaged" in text
    assert "prefers-color-scheme" in text and 'name="viewport"' in text
    assert json.loads(result.stdout)["models"][1]["ok"] and f"wrote {file}" in result.stderr


def test_a_page_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "page.html"):
        result = pocketlm("compare", "--html", str(path))
        assert (result.returncode, result.stdout) == (2, "")
        assert (
            result.stderr.startswith(f"error: html: cannot write {path}") and "loading" not in result.stderr
        )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--prompt", ""], 1, "error: Prompt is required\n"),
        (["--max-tokens", "-1"], 1, "error: max_tokens must be "),
        (["--dtype", "int3"], 2, "error: dtype: "),
        (["--shape", "gpt7"], 1, "shapes are shape:"),
        (["no/such/model/at/all"], 1, "no/such/model/at/all"),
        (["bundled", "--prompt", "word " * 2000], 1, "context window"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], code: int, message: str) -> None:
    result = pocketlm("compare", *arguments)
    assert result.returncode == code
    assert message in " ".join((result.stdout + result.stderr).split()) + "\n"
    assert "Traceback" not in result.stdout + result.stderr


@contextmanager
def comparing(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    with subprocess.Popen(
        [*COMMAND, "compare", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            yield process, process.stderr
        finally:
            process.kill()


def child_that_loads(process: subprocess.Popen[str], notes: IO[str]) -> psutil.Process:
    assert "loading" in notes.readline()
    [child] = psutil.Process(process.pid).children()
    return child


def is_gone(child: psutil.Process, timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
class TestSignals:
    def test_a_model_whose_process_is_killed_keeps_its_row(self) -> None:
        with comparing("shape:gpt2-medium", "bundled", "--json") as (process, notes):
            child_that_loads(process, notes).kill()
            output, _ = process.communicate(timeout=60)
        killed, bundled = json.loads(output)["models"]
        assert "SIGKILL" in killed["error"] and "memory" in killed["error"]
        assert bundled["ok"] and process.returncode == 1

    def test_ctrl_c_ends_the_command_and_the_model(self) -> None:
        with comparing("shape:gpt2-large") as (process, notes):
            child = child_that_loads(process, notes)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 130
            assert is_gone(child)
            assert process.stdout is not None
            assert process.stdout.read() == "" and "Traceback" not in notes.read()

    def test_no_model_outlives_a_command_that_was_killed(self) -> None:
        with comparing("shape:gpt2-large") as (process, notes):
            child = child_that_loads(process, notes)
            process.kill()
            assert is_gone(child)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX terminal")
class TestInATerminal:
    def test_progress_on_the_way_and_bars_at_the_end(self) -> None:
        with terminal("compare", "bundled", "shape:distilgpt2", columns=80) as screen:
            screen.wait_for(r"(loading|generating) shape:distilgpt2 .* 2/4|3/4")
            assert screen.wait() == 0
            assert re.search(r"shape:distilgpt2 +81\.9M( +[\d.,]+){5}", screen.screen)
            assert re.search(r"shape:distilgpt2 █", screen.screen)
            assert "loading" not in screen.screen  # the progress bar has left

    def test_in_40_columns_no_figure_is_cut(self) -> None:
        with terminal("compare", "bundled", columns=40, lines=40, environment={"NO_COLOR": "1"}) as screen:
            assert screen.wait() == 0
            for heading in ("params", "load s", "memory MiB", "peak MiB", "inference s", "tokens/s"):
                assert re.search(rf"^  {heading} +[\d.,M]+$", screen.screen, re.MULTILINE)
            assert screen.colors == set()

    def test_ctrl_c_leaves_the_terminal_clean(self) -> None:
        with terminal("compare", "shape:gpt2-large") as screen:
            screen.wait_for("loading shape:gpt2-large")
            screen.send(CTRL_C)
            assert screen.wait(20) == 130
            assert "Traceback" not in screen.screen
            assert screen.written.rfind("\x1b[?25h") > screen.written.rfind("\x1b[?25l")  # the cursor is back
