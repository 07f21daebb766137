"""pocketlm serve: from the command to a clean end."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from command import COMMAND, pocketlm


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server on a free port, and the first lines of its stderr, up to the curl line."""
    process = subprocess.Popen(
        [*COMMAND, "serve", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    lines = ""
    try:
        for line in process.stderr:
            lines += line
            if line.startswith("curl "):
                break
        yield process, lines
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_it_answers_at_once_and_ends_cleanly(number: signal.Signals) -> None:
    with serving("--port", "0", "--num-threads", "1", "--max-length-limit", "30") as (process, lines):
        assert "num_threads=1: as configured" in lines
        found = re.search(r"http://127\.0\.0\.1:\d+", lines)
        assert found
        # The port is open: the very first connection is answered.
        assert httpx.get(f"{found[0]}/health").json()["status"] == "healthy"
        response = httpx.post(f"{found[0]}/generate", json={"prompt": "a", "max_length": 31})
        assert response.json() == {"error": "max_length cannot exceed 30"}
        process.send_signal(number)
        output, errors = process.communicate(timeout=20)
        assert process.returncode == 0
        assert output == "" and "Traceback" not in errors
        assert "POST /generate" in errors


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_line_it_prints_can_be_pasted() -> None:
    with serving("--port", "0") as (_, lines):
        command = lines.splitlines()[-1]
        result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=True)
        assert '"generated_text":"Kubernetes is a' in result.stdout


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = pocketlm("serve", "--port", str(port))
    assert result.returncode == 1
    assert f"error: cannot listen on 127.0.0.1 port {port}: Address already in use" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--port", "70000"], 2, "error: port: input should be less than or equal to 65535, got '70000'"),
        (["--host", "no.such.host.invalid", "--port", "0"], 2, "error: host: 'no.such.host.invalid'"),
        (["no/such/folder"], 1, "error: "),
    ],
)
def test_a_wrong_setting_is_one_line_and_an_exit_code(arguments: list[str], code: int, message: str) -> None:
    result = pocketlm("serve", *arguments)
    assert result.returncode == code
    assert message in result.stderr and "Traceback" not in result.stderr
