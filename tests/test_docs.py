"""What the documentation says is there, and what is there is in the documentation."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import typer.core
import typer.main

from pocketlm import SamplingParams
from pocketlm.cli import app
from pocketlm.config import EngineConfig, ServerConfig
from pocketlm.llm import LLM
from pocketlm.models import FAMILIES
from pocketlm.models.gpt2 import ACTIVATIONS
from pocketlm.server.protocol import FIELDS, GenerateRequest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
API = (ROOT / "docs" / "api.md").read_text()
SAMPLING = (ROOT / "docs" / "sampling.md").read_text()
MODELS = (ROOT / "docs" / "models.md").read_text()


def blocks(text: str, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_first_commands_of_the_readme_are_the_two() -> None:
    first = blocks(README)[0].splitlines()
    assert [line.split("#")[0].strip() for line in first] == ["make serve", "make test"]


def test_the_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    [code] = blocks(README, "python")
    exec(code, {})
    printed = capsys.readouterr().out
    assert "Kubernetes is a" in printed and "Docker containers are" in printed


def test_the_readme_names_commands_and_flags_that_exist() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    lines = [line for block in blocks(README) for line in block.splitlines() if "pocketlm " in line]
    assert lines
    for line in lines:
        words = shlex.split(line[line.index("pocketlm ") :], comments=True)
        command = group.commands[words[1]]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_links_lead_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("csrc/*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), (page.name, target)


def test_the_architecture_fits_its_150_lines() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) <= 150


def test_every_setting_is_in_the_docs() -> None:
    for name in EngineConfig.model_fields:
        assert f"`{name}`" in API, name
    for name in ("max_length_limit", "max_body"):
        assert name in ServerConfig.model_fields and f"--{name.replace('_', '-')}" in API


def test_every_field_of_a_request_is_in_the_docs() -> None:
    for name in FIELDS:
        assert f"`{name}`" in API, name
    for field in fields(SamplingParams):
        assert f"| `{field.name}` |" in SAMPLING, field.name


def test_the_answer_in_the_docs_is_an_answer() -> None:
    """The JSON of the curl example has the fields, the parameters and the token counts of a real one."""
    [example] = (json.loads(block) for block in blocks(API, "json"))
    [curl] = (block for block in blocks(API) if block.startswith("$ curl"))
    body = json.loads(shlex.split(curl.replace("\\\n", " "))[-1])
    request = GenerateRequest.from_json(body, max_length_limit=200)
    [output] = LLM().generate(request.prompt, request.params)
    answer = request.answer(output, 0.0)
    unstable = ("generated_text", "inference_time_seconds")  # differ between instruction sets and machines
    assert {k: v for k, v in answer.items() if k not in unstable} == {
        k: v for k, v in example.items() if k not in unstable
    }
    assert answer.keys() == example.keys()


def test_what_is_supported_is_in_the_docs() -> None:
    for model_type in FAMILIES:
        assert f"| `{model_type}` |" in MODELS
    listed = re.search(r"`activation_function` one of ([^.]+)\.", MODELS.replace("\n", " "))
    assert listed and set(re.split(r",\s+", listed[1])) == set(ACTIVATIONS)
