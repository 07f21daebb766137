"""What a command imports decides how fast it starts; here without a clock."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer.core
import typer.main

from pocketlm.cli import SUMMARIES, app

SERVER = {"fastapi", "starlette", "uvicorn", "prometheus_client", "structlog", "limits", "asyncio"}
UNUSED = SERVER | {"huggingface_hub", "httpx", "jinja2", "rich", "multiprocessing", "ssl"}

RUN = """\
import json, sys
from pocketlm.cli import main
sys.argv = ["pocketlm", *sys.argv[1:]]
try:
    main()
finally:
    print("\\n" + json.dumps(sorted(sys.modules)))
"""


def modules_after(*arguments: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [("--help",), ("--version",)])
def test_what_needs_no_model_imports_next_to_nothing(arguments: tuple[str, ...]) -> None:
    found = modules_after(*arguments)
    assert "typer" in found
    assert not found & (UNUSED | {"numpy", "pydantic", "tokenizers", "pocketlm.config"})


def test_generate_imports_no_server() -> None:
    found = modules_after("generate", "Kubernetes is a", "--max-tokens", "1")
    assert "pocketlm.llm" in found
    assert not found & UNUSED


def test_the_list_of_commands_says_what_they_say_of_themselves() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    for name, summary in SUMMARIES.items():
        assert (group.commands[name].help or "").startswith(summary), name
