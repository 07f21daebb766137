"""Every command in a real terminal: wide and narrow, with and without colours, ended by Ctrl-C."""

from __future__ import annotations

import json
import re

import psutil
import pytest
import typer.core
import typer.main
from command import pocketlm
from terminal import CTRL_C, CTRL_D, Terminal, terminal

from pocketlm.cli import app

PROMPT = "Kubernetes is a"
# Of each command: its arguments, and what must stand on the screen at the end.
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "serve": (["--port", "0"], ["curl http"]),
    "generate": ([PROMPT, "--max-tokens", "8", "--seed", "1"], [PROMPT, "seed 1, 8 tokens"]),
    "verify": (["--dtype", "float32"], ["equal greedy", "100.0"]),
    "doctor": ([], ["all is well"]),
    "monitor": ([], ["MiB", "tokens"]),
    "compare": (["bundled", "no/such/folder"], ["bundled", "MiB", "local folder"]),
    "explore": ([PROMPT, "--seed", "1"], ["tokens", "%", "emperature", "op-k", "op-p"]),
    "chat": ([], ["assistant"]),
    "bench": (["--concurrency", "1,2", "--requests", "4", "--max-tokens", "4"], ["TTFT", "p99"]),
}


def group() -> typer.core.TyperGroup:
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    return command


def test_no_command_is_left_out_here() -> None:
    assert set(COMMANDS) == set(group().commands)


@pytest.mark.parametrize(("columns", "environment"), [(80, {}), (40, {"NO_COLOR": "1"})])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_in_a_terminal(name: str, columns: int, environment: dict[str, str]) -> None:
    arguments, expected = COMMANDS[name]
    with terminal(name, *arguments, columns=columns, lines=400, environment=environment) as t:
        assert leave(t, name) == (1 if name == "compare" else 0), t.screen
        words = re.sub(r"\s*\n\s*", " ", t.screen)
        for text in expected:
            assert text in words, t.screen
        assert "Traceback" not in t.screen
        if environment:
            assert t.colors == set()


def leave(t: Terminal, name: str) -> int:
    """End what goes on until it is told."""
    if name == "serve":
        t.wait_for("curl http")
        t.send(CTRL_C)
    elif name == "chat":
        t.wait_for("> ?$")
        t.send(CTRL_D)
    return t.wait()


@pytest.mark.parametrize("columns", [80, 40])
def test_the_help_names_every_command(columns: int) -> None:
    with terminal("--help", columns=columns, lines=100) as t:
        assert t.wait() == 0
        for name in group().commands:
            assert re.search(rf"^  {name} ", t.screen, re.MULTILINE)
        assert columns < 80 or "..." not in t.screen.partition("Commands:")[2]  # no sentence is cut


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_names_every_flag_in_a_narrow_terminal(name: str) -> None:
    with terminal(name, "--help", columns=40, lines=400) as t:
        assert t.wait() == 0
        for parameter in group().commands[name].params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                assert not option.startswith("-") or option in t.screen


# Of each command that may take long: arguments, and what it shows when it is at work.
LONG = {
    "generate": (
        [PROMPT, "--max-tokens", "500", "--num-return-sequences", "64", "--seed", "1"],
        rf"{PROMPT}\s+\w+",
    ),
    "compare": (["shape:gpt2", "shape:gpt2", "shape:gpt2"], "shape:gpt2"),
    "bench": (["--concurrency", "1", "--requests", "100000"], "1 client"),
}


@pytest.mark.parametrize("name", LONG)
def test_ctrl_c_ends_long_work(name: str) -> None:
    arguments, at_work = LONG[name]
    with terminal(name, *arguments) as t:
        t.wait_for(at_work)
        children = psutil.Process(t.process.pid).children(recursive=True)
        t.send(CTRL_C)
        assert t.wait(timeout_s=10) == 130, t.screen
        assert "Traceback" not in t.screen
        assert not any(child.is_running() for child in children)


@pytest.mark.parametrize(
    "arguments",
    [
        ["serve"],
        ["generate", PROMPT, "--model"],
        ["verify"],
        ["monitor"],
        ["explore", PROMPT, "--model"],
        ["chat"],
        ["bench", "--model"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_unknown_model_is_one_sentence(arguments: list[str]) -> None:
    result = pocketlm(*arguments, "no/such/folder")
    assert (result.returncode, result.stdout) == (1, "")
    assert re.match("error: .*'no/such/folder' is not a local folder", result.stderr.splitlines()[-1])
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["monitor", "bench"])
def test_a_server_that_is_not_there_is_one_sentence(name: str) -> None:
    result = pocketlm(name, "--url", "http://127.0.0.1:1")
    assert (result.returncode, result.stdout) == (1, "")
    assert re.search(r"^error: .*http://127\.0\.0\.1:1", result.stderr, re.MULTILINE)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "serve"])
def test_json_is_one_object_on_one_line(name: str) -> None:
    arguments, _ = COMMANDS[name]
    result = pocketlm(name, *arguments, "--json")
    assert result.returncode == (1 if name == "compare" else 0), result.stderr
    assert result.stdout.count("\n") == 1 and isinstance(json.loads(result.stdout), dict)
