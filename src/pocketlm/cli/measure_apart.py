"""A model measured in a process of its own: memory is true, and a crash is a result."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from pocketlm.config import EngineConfig

Row = dict[str, Any]  # a model's measurement, or its error

STAGES = ("loading", "generating")


def measure_apart(
    name: str, config: EngineConfig, prompt: str, max_tokens: int, show: Callable[[str], None]
) -> Row:
    """Measure a model in a process of its own, which says what it does and at the end what it found.

    `show` is told each of STAGES. The row has `ok`, and a Measurement's fields or `error`.
    """
    arguments = {"model": name, "config": config.model_dump(), "prompt": prompt, "max_tokens": max_tokens}
    found: Row = {}
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            [sys.executable, "-m", "pocketlm.cli.measure"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()  # and not closed: the process ends when it is
            for line in process.stdout:
                message = json.loads(line)
                if "stage" in message:
                    show(message["stage"])
                else:
                    found = message
            process.wait()
        except BrokenPipeError:  # it ended before it read anything
            process.wait()
        finally:
            process.kill()  # on Ctrl-C
        errors.seek(0)
        error = found.get("error") or (None if found else _reason(process.returncode, errors.read()))
    if error is not None:
        return {"model": _utf_8(name), "ok": False, "error": _utf_8(error)}
    return {"model": _utf_8(name), "ok": True, **found}


def _utf_8(text: str) -> str:
    """A folder's name may have bytes that are no UTF-8, which could be neither printed nor written."""
    return text.encode(errors="replace").decode()


def _reason(code: int, errors: bytes) -> str:
    """Why a process ended without a word."""
    if code == -signal.SIGKILL:
        return "its process was killed (SIGKILL), as the system does when memory runs out"
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    last = errors.decode(errors="replace").strip().rpartition("\n")[2]
    return f"its process ended with code {code}: {last}"
