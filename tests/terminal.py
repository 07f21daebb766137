"""Runs the command `pocketlm` in a terminal of its own, as a person does: keys in, a screen out."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pyte
from command import COMMAND

CTRL_C, CTRL_D, ENTER = "\x03", "\x04", "\r"

# The terminal has to be the one that controls the process, or Ctrl-C typed there would reach nobody.
IN_ITS_TERMINAL = """\
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
# Not those of the terminal in which the tests are started, if there is one.
LEFT_OUT = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM")
STYLE = re.compile(r"\x1b\[([0-9;]*)m")


class Terminal:
    """A running command and the terminal it is in."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int, columns: int, lines: int) -> None:
        self.process = process
        self.written = ""  # all that came so far, with its control sequences
        self._descriptor = descriptor
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)

    @property
    def screen(self) -> str:
        """What a person sees now."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    @property
    def colors(self) -> set[str]:
        """The colours written so far, as the numbers of their control sequences."""
        return {
            number
            for codes in STYLE.findall(self.written)
            for number in codes.split(";")
            if re.fullmatch(r"[349][0-8]|10[0-7]", number)
        }

    def send(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def send_line(self, text: str) -> None:
        self.send(text + ENTER)

    def send_signal(self, number: signal.Signals) -> None:
        """To the process alone; `send(CTRL_C)` reaches its children, too."""
        self.process.send_signal(number)

    def resize(self, columns: int, lines: int) -> None:
        _set_size(self._descriptor, columns, lines)
        self._screen.resize(lines, columns)
        self.process.send_signal(signal.SIGWINCH)

    def wait_for(self, text: str, timeout_s: float = 60.0) -> str:
        """Wait until this stands on the screen, a pattern of `re`; returns the screen."""
        deadline = time.monotonic() + timeout_s
        while not re.search(text, self.screen):
            is_open = self._read(deadline)
            assert is_open or re.search(text, self.screen), f"ended without {text!r}:\n{self.screen}"
            assert time.monotonic() < deadline, f"no {text!r} in {timeout_s} s:\n{self.screen}"
        return self.screen

    def wait_for_more(self, num_chars: int, timeout_s: float = 60.0) -> None:
        """Wait until so much more was written, whether or not it is still on the screen."""
        deadline, enough = time.monotonic() + timeout_s, len(self.written) + num_chars
        while len(self.written) < enough:
            assert self._read(deadline), f"ended:\n{self.screen}"
            assert time.monotonic() < deadline, f"no more in {timeout_s} s:\n{self.screen}"

    def wait(self, timeout_s: float = 60.0) -> int:
        """Read to the end; returns the exit code, which is minus the signal's number if one ended it."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline):
            assert time.monotonic() < deadline, f"not ended in {timeout_s} s:\n{self.screen}"
        return self.process.wait(timeout=max(0.1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        """Read what came; False at the end."""
        ready, _, _ = select.select([self._descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return True
        try:
            data = os.read(self._descriptor, 1 << 16)
        except OSError as error:
            if error.errno != errno.EIO:  # Linux says so when the last process has left the terminal
                raise
            return False
        self._stream.feed(data)
        self.written += data.decode(errors="replace")
        return bool(data)


@contextmanager
def terminal(
    *arguments: str,
    columns: int = 80,
    lines: int = 24,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[Terminal]:
    """`pocketlm ARGUMENTS` in a terminal of this size; whatever still runs at the end is ended."""
    controller, device = os.openpty()
    _set_size(device, columns, lines)
    kept = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    process = subprocess.Popen(
        [sys.executable, "-c", IN_ITS_TERMINAL, *COMMAND, *arguments],
        stdin=device,
        stdout=device,
        stderr=device,
        cwd=folder,
        env={**kept, "TERM": "xterm-256color", **(environment or {})},
        start_new_session=True,
    )
    os.close(device)
    try:
        yield Terminal(process, controller, columns, lines)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # it leads a group of its own, its children's
            process.wait(timeout=10)
        os.close(controller)


def _set_size(descriptor: int, columns: int, lines: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
