"""What the documentation says is there, and what is there is in the documentation."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer.core
import typer.main
from served import RunningServer, bundled_model, running_server

from pocketlm import SamplingParams, kernels, loading
from pocketlm.cli import app
from pocketlm.config import EngineConfig, ServerConfig, load_config
from pocketlm.errors import PocketLMError
from pocketlm.models import FAMILIES
from pocketlm.models.gpt2 import ACTIVATIONS
from pocketlm.outputs import Timing
from pocketlm.registry import Registry
from pocketlm.server.metrics import Metrics
from pocketlm.server.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerateRequest,
    TokenizeRequest,
)
from pocketlm.server.request_log import RequestRecord

ROOT = Path(__file__).parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text() for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))
}
README = PAGES["README.md"]
API = PAGES["docs/api.md"]
TUTORIAL = PAGES["docs/tutorial.md"]
CONFIGURATION = PAGES["docs/configuration.md"]
OPERATIONS = PAGES["docs/operations.md"]
EXERCISE = PAGES["docs/exercise.md"]
SAMPLING = PAGES["docs/sampling.md"]
MODELS = PAGES["docs/models.md"]
URL = "http://127.0.0.1:5000"

# A curl command, and what it printed.
EXAMPLE = re.compile(r"^```\n\$ (curl .*?)^```\n```(?:json|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A command that needs no server and no large model, and what it printed.
COMMAND = re.compile(
    r"^```\n\$ (?!pocketlm serve|curl|python examples/client|[^\n]*(?:--url|--shape|--measure))(.*?)^```\n"
    r"```text\n(.*?)^```",
    re.MULTILINE | re.DOTALL,
)
# What an answer says again on every machine; texts differ between instruction sets and number formats.
STABLE = {
    "prompt",
    "parameters",
    "usage",
    "finish_reason",
    "cached",
    "object",
    "index",
    "role",
    "tokens",
    "error",
}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(bundled_model()) as server:
        yield server


def blocks(text: str, language: str = "") -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for its_language, block in found if its_language == language]


def flags() -> set[str]:
    """Of all commands."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    parameters = [parameter for command in group.commands.values() for parameter in command.params]
    return {option for p in parameters for option in (*p.opts, *p.secondary_opts)}


def error_classes(base: type[PocketLMError] = PocketLMError) -> list[type[PocketLMError]]:
    return [base, *(found for child in base.__subclasses__() for found in error_classes(child))]


# Tables made from the code


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/")])
def test_tables_are_as_make_docs_writes_them(page: str) -> None:
    with_tables = runpy.run_path(str(ROOT / "scripts" / "write_docs.py"))["with_tables"]
    assert PAGES[page] == with_tables(PAGES[page]), "run make docs"


def test_every_setting_is_in_the_docs() -> None:
    for name in (*EngineConfig.model_fields, *ServerConfig.model_fields):
        flag = f"--{name.replace('_', '-')}"
        assert f"| `{name}` | `{flag}`" in CONFIGURATION and flag in flags()
    assert "POCKETLM_MODEL" in CONFIGURATION


def test_every_field_of_a_request_is_in_the_docs() -> None:
    for request in (GenerateRequest, CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest):
        for name in request.FIELDS:
            assert f"| `{name}` |" in API, name
    for field in fields(SamplingParams):
        assert f"| `{field.name}` |" in SAMPLING, field.name


def test_every_route_is_in_the_docs(server: RunningServer) -> None:
    paths = server.app.openapi()["paths"]
    assert len(paths) > 10
    for path, operations in paths.items():
        for method in operations:
            assert f"| {method.upper()} | `{path}` |" in API


def test_every_error_is_in_the_docs_and_says_what_to_do() -> None:
    for error in error_classes():
        assert f"| `{error.__name__}` |" in API
        if not error.__subclasses__():
            assert f"`{error.code}`" in OPERATIONS, error.code


def test_every_metric_is_in_the_docs() -> None:
    for description in Metrics.describe():
        assert f"| `{description.name}` |" in OPERATIONS


# What pages say


def test_the_first_commands_of_the_readme_are_the_two() -> None:
    first = blocks(README)[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make serve", "make test"]


def test_pages_name_commands_and_flags_that_exist() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    known = flags()
    for name, page in PAGES.items():
        for flag in re.findall(r"`(--[a-z-]+)", page):
            assert flag in known, (name, flag)
        for line in re.findall(r"^(?:\$ )?(?:.* \| )?pocketlm (.+)$", "\n".join(blocks(page)), re.MULTILINE):
            words = shlex.split(line.partition(" [")[0], comments=True)
            options = {option for p in group.commands[words[0]].params for option in p.opts}
            assert {word for word in words if word.startswith("--")} <= options, line


def test_pages_name_variables_that_exist() -> None:
    known = {*EngineConfig.model_fields, *ServerConfig.model_fields, "model", "isa"}
    for name, page in PAGES.items():
        for variable in re.findall(r"POCKETLM_([A-Z_]+)", page):
            assert variable.lower() in known or variable == "WERROR", (name, variable)


def test_queries_are_of_metrics_that_exist() -> None:
    known = {description.name for description in Metrics.describe()}
    named = re.findall(r"(?:pocketlm:|process_)[a-z0-9]+_[a-z0-9_]+", OPERATIONS)
    assert {re.sub(r"_(bucket|sum|count)$", "", name) for name in named} <= known


def test_links_lead_somewhere() -> None:
    for page in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("csrc/*.md"),
        *ROOT.glob("deploy/*/*.md"),
        *ROOT.glob("training/*.md"),
    ):
        for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", page.read_text()):
            if target.startswith("https://"):
                continue
            other = page.parent / target if target else page
            assert other.exists(), (page.name, target)
            headings = re.findall(r"^#+ (.+)$", other.read_text(), re.MULTILINE) if anchor else []
            assert not anchor or anchor in [heading.lower().replace(" ", "-") for heading in headings], anchor


def test_the_architecture_fits_its_150_lines() -> None:
    assert len(PAGES["ARCHITECTURE.md"].splitlines()) <= 150


def test_what_is_supported_is_in_the_docs() -> None:
    for model_type in FAMILIES:
        assert f"| `{model_type}` |" in MODELS
    listed = re.search(r"`activation_function` one of ([^.]+)\.", MODELS.replace("\n", " "))
    assert listed and set(re.split(r",\s+", listed[1])) == set(ACTIVATIONS)


def test_every_item_of_the_exercise_is_held_by_tests_that_exist() -> None:
    rows = [
        line for line in EXERCISE.splitlines() if line.startswith("| ") and not line.startswith("| asked")
    ]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(tests/[a-z_/]+\.py)::([\w:]+)`", row)
        assert named, row
        for file, test in named:
            assert test in names_of_tests(ROOT / file), (file, test)


def names_of_tests(file: Path) -> set[str]:
    """The names of its tests, as pytest has them."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        names |= {prefix + part.name for part in inner if isinstance(part, ast.FunctionDef)}
    return names


# Examples are run


def test_the_file_of_settings_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [example] = blocks(CONFIGURATION, "toml")
    (tmp_path / "pocketlm.toml").write_text(example)
    monkeypatch.chdir(tmp_path)
    models, _, config = load_config({})
    assert models == ("gpt2", "distilgpt2", "./my-gpt2-folder")
    assert config.alias == ("small=distilgpt2",) and config.memory_budget == 6 << 30


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_the_python_of_the_pages_runs(
    page: str, server: RunningServer, capsys: pytest.CaptureFixture[str]
) -> None:
    code = blocks(PAGES[page], "python")
    assert len(code) == 2
    for block in code:
        exec(block.replace(URL, server.url), {})
    printed = capsys.readouterr().out
    if page == "README.md":
        assert "Kubernetes is a" in printed and "Docker containers are" in printed
    else:
        assert "model_not_found" in printed


@pytest.mark.parametrize("command", [block for block in blocks(README) if "$ curl" in block])
def test_the_curl_lines_of_the_readme_work(command: str, server: RunningServer) -> None:
    for line in re.findall(r"\$ (curl (?:.*\\\n)*.*)", command):
        assert curl(line, server).status_code == 200


@pytest.mark.parametrize(("command", "printed"), EXAMPLE.findall(API))
def test_an_example_is_an_answer(command: str, printed: str, server: RunningServer) -> None:
    """What a curl example prints is what the server answers to it, as far as that is the same everywhere."""
    assert compared(printed) == compared(curl(command, server).text)


def test_the_examples_are_found() -> None:
    assert len(EXAMPLE.findall(API)) == API.count("$ curl")


def test_the_requests_of_the_tutorial_get_these_answers_in_this_order() -> None:
    registry = Registry(["bundled", "shape:distilgpt2"], aliases={"small": "bundled"})
    registry.preload()
    examples = EXAMPLE.findall(TUTORIAL)
    assert len(examples) == TUTORIAL.count("$ curl") > 5
    with running_server(registry) as server:
        for command, printed in examples:
            assert compared(printed) == compared(curl(command, server).text), command


def test_the_table_of_resources_has_the_true_sizes() -> None:
    rows = re.findall(r"^\| (distilgpt2|gpt2\S*) \| ([\d,]+) \|", TUTORIAL, re.MULTILINE)
    assert len(rows) == 4
    for shape, parameters in rows:
        estimate = loading.estimate(f"shape:{shape}", EngineConfig(), available_bytes=1 << 34)
        assert estimate.num_parameters == int(parameters.replace(",", ""))


@pytest.mark.parametrize(("command", "printed"), COMMAND.findall(TUTORIAL))
def test_a_command_of_the_tutorial(command: str, printed: str) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    line = command.replace("\\\n", " ")
    result = subprocess.run(
        ["bash", "-c", line],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == (1 if "no/such/folder" in command else 0), result.stderr
    assert result.stdout and printed
    # The tokens of the machine on the page.
    if "generate" in command and kernels.isa()[0].startswith(("avx512_", "amx")):
        assert without_spaces(result.stdout.splitlines()[0]) in without_spaces(printed)


def without_spaces(text: str) -> str:
    return "".join(text.split())


def test_the_line_of_the_log_has_the_fields_of_one() -> None:
    [line] = blocks(OPERATIONS, "json")
    record = RequestRecord(
        "id",
        model="m",
        cache="hit",
        num_prompt_tokens=1,
        num_output_tokens=1,
        timing=Timing(),
        finish_reasons=["stop"],
    )
    assert set(record.fields()) <= set(json.loads(line))


def curl(command: str, server: RunningServer) -> httpx.Response:
    words = iter(shlex.split(command.replace("\\\n", " "))[1:])
    url, headers, body, method = "", {}, None, None
    for word in words:
        if word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word == "-d":
            body = next(words)
        elif word == "-X":
            method = next(words)
        elif word != "-N":
            url = word.replace(URL, server.url)
    method = method or ("GET" if body is None else "POST")
    return server.client.request(method, url, headers=headers, content=body)


def compared(text: str) -> object:
    """JSON, or events of JSON, with every value that may differ replaced by its type."""
    if not text.startswith("data: "):
        return _kinds(json.loads(text))
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return [event if event == "[DONE]" else _kinds(json.loads(event)) for event in events]


def _kinds(value: Any) -> object:
    if isinstance(value, dict):
        return {name: v if name in STABLE else _kinds(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_kinds(entry) for entry in value]
    return "number" if isinstance(value, int | float) else type(value).__name__
