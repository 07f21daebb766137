"""A server of our own for a benchmark, in a child process that ends with it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def own_server(model: str, *flags: str) -> Iterator[str]:
    """The address of a server on a free port; at the end it must drain and leave with 0."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        command = [sys.executable, "-m", "pocketlm", "serve", model, "--port", "0", *flags]
        with log.open("w") as file:
            process = subprocess.Popen(command, stderr=file, stdout=subprocess.DEVNULL)
        try:
            found, deadline = None, time.monotonic() + 120
            while found is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the server did not start:\n{log.read_text(errors='replace')}")
                time.sleep(0.05)
                found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text(errors="replace"))
            yield found[0]
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=60)
            traceback = re.search(r"Traceback.*", log.read_text(errors="replace"), re.DOTALL)
            if code != 0 or traceback:
                raise SystemExit(f"the server left with {code}\n{traceback[0][:2000] if traceback else ''}")
        finally:
            process.kill()
            process.wait()
