"""The scripts of examples/, each run as its docstring says."""

from __future__ import annotations

import ast
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from served import bundled_model, running_server, wait_until

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: str) -> str:
    """What an example prints; it must end well and say nothing else."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_verify_install() -> None:
    printed = run("verify_install.py")
    assert re.match(r"pocketlm \d+\.\d+", printed) and printed.endswith("The installation works.\n")
    assert "dtype=" in printed and "\nHello, I am" in printed


def test_basic_generation() -> None:
    printed = run("basic_generation.py")
    answers = re.split(r"\n\nContinuation \d, seed \d:\n", printed)
    assert answers[0] == "Prompt: Machine learning is" and len(set(answers[1:])) == 3
    assert all(answer.startswith("Machine learning is") for answer in answers[1:])
    assert run("basic_generation.py") == printed  # it has a seed


def test_parameter_exploration() -> None:
    printed = run("parameter_exploration.py")
    answers = dict(re.findall(r"^(\w+=[\d.]+):\n(.*?)(?=\n\n== |\n\n\w+=|\Z)", printed, re.M | re.S))
    assert len(answers) == 12
    assert answers["temperature=0.0"] == answers["top_k=1"]  # always the likeliest token
    assert answers["temperature=0.7"] != answers["temperature=1.5"]
    assert answers["max_length=80"].startswith(answers["max_length=20"])


def test_monitor_resources() -> None:
    printed = run("monitor_resources.py")
    before, after, used = (float(figure) for figure in re.findall(r"([\d.]+) MiB", printed)[:3])
    assert "Machine learning is" in printed and "Tokens per second:" in printed
    [own] = re.findall(r"([\d.]+) for the model", printed)
    assert 0 < before < after <= used and float(own) == pytest.approx(after - before, abs=0.11)


def test_compare_models() -> None:
    good, bad = run("compare_models.py").splitlines()
    assert re.match(r"bundled +[\d.]+ MiB +load +[\d.]+ s +inference +[\d.]+ s +[\d.]+ tokens/s", good)
    assert re.match(r"no/such/folder +failed: .*is not a local folder", bad)


def test_client() -> None:
    with running_server(bundled_model()) as server:
        printed = run("client.py", server.url)
        body = {"prompt": "Kubernetes is a", "max_length": 40, "temperature": 0}
        streamed = server.client.post("/generate", json=body).json()["generated_text"]
    for prompt in (
        "Docker containers are",
        "Machine learning infrastructure requires",
        "The future of AI is",
    ):
        assert f"\n{prompt}" in printed
    assert "\n400: temperature must be a number between 0.0 and 2.0, got 2.5\n" in printed
    assert printed.endswith(f"\n\n{streamed}\n")


def test_llm_api(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    uvicorn = [sys.executable, "-W", "error", "-m", "uvicorn"]
    command = [*uvicorn, "--factory", "--app-dir", str(EXAMPLES), "llm_api:create_app", "--port", str(port)]
    # In a folder without pocketlm.toml; as a factory it has settings from the environment.
    environment = {**os.environ, "POCKETLM_ALIAS": "small=bundled"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_until(lambda: answers(client) or process.poll() is not None, timeout_s=60)
            body = {"model": "small", "prompt": "Kubernetes is a", "max_length": 20}
            answer = client.post("/generate", json=body).json()
            assert answer["generated_text"].startswith("Kubernetes is a")
            assert client.get("/about").json() == {"service": "an exercise", "try": "POST /generate"}
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:  # nobody listens yet
        return False


def test_each_example_says_what_it_is_and_is_run_here() -> None:
    tests = Path(__file__).read_text()
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) >= 7
    for script in scripts:
        assert f"def test_{script.stem}(" in tests
        docstring = ast.get_docstring(ast.parse(script.read_text()))
        assert docstring and f"{script.stem}" in docstring  # the command that runs it
