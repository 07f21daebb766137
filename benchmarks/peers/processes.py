"""An engine in processes of its own, which stand still while others are measured."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from crowd import Answer, Crowd, CrowdError, post

from peers.workload import SANITY, Case, TokenIds

START_S, CASE_S, SERVED_S = 600, 180, 1200  # more is a failure; the exercise's server takes minutes
Request = Callable[[TokenIds, int], tuple[str, dict[str, Any]]]


class Failed(Exception):
    """Why an engine has no figure, in one line."""


class Processes:
    """A process and all that it starts. They are stopped (SIGSTOP) but for the time of a measurement, so
    that threads that wait by spinning cost the others nothing, and need no settings."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, **pipes: Any
    ) -> None:
        with log.open("w") as file:
            self._process = subprocess.Popen(
                command, env={**os.environ, **environment}, stderr=file, start_new_session=True, **pipes
            )
        self._is_ended = False

    def get_ready(self) -> None:
        """Wait until it is, and pause it. Failed."""
        raise NotImplementedError

    def proceed(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def pause(self) -> None:
        os.killpg(self._process.pid, signal.SIGSTOP)

    def end(self) -> None:
        if self._is_ended:
            return
        self._is_ended = True
        with contextlib.suppress(ProcessLookupError):  # they may have ended by themselves
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class InProcess(Processes):
    """peers.child, asked through its pipes."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        super().__init__(command, environment, log, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def get_ready(self) -> None:
        self._answer(START_S)
        self.pause()

    def seconds(self, case: Case, round_number: int) -> float:
        return float(self._ask(case, round_number)["seconds"])

    def sanity_tokens(self) -> TokenIds | None:
        tokens: TokenIds | None = self._ask(SANITY, 0)["tokens"]
        return tokens

    def _ask(self, case: Case, round_number: int) -> dict[str, Any]:
        self.proceed()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"case": case.name, "round": round_number}).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._answer(CASE_S)
        self.pause()
        return answer

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        """The next line, which comes alone."""
        assert self._process.stdout is not None
        line, deadline = b"", time.monotonic() + timeout_s
        while not line.endswith(b"\n"):
            if not select.select([self._process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                raise Failed(f"took over {timeout_s:g} s")
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            if not part:
                raise Failed(f"ended with {self._process.wait()}")
            line += part
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer


class Server(Processes):
    """An HTTP server on the port that it was given, asked by a crowd."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log: Path, port: int, request: Request
    ) -> None:
        super().__init__(command, environment, log, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self._url, self._request = f"http://127.0.0.1:{port}", request

    def get_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None:
                raise Failed(f"the server ended with {self._process.returncode}")
            if time.monotonic() > deadline:
                raise Failed(f"the server did not answer in {START_S} s")
            time.sleep(0.5)
        self.pause()

    def _is_ready(self) -> bool:
        try:
            [answer] = self._ask(SANITY, 0)
        except (OSError, CrowdError):
            return False
        return answer.status == 200

    def seconds(self, case: Case, round_number: int) -> float:
        self.proceed()
        try:
            answers = self._ask(case, round_number)
        except (OSError, CrowdError) as error:
            raise Failed(str(error)) from None
        self.pause()
        for answer in answers:
            if answer.status != 200:
                raise Failed(f"status {answer.status}")
            # The exercise's server does not say how many tokens there are.
            if answer.num_tokens() not in (None, case.num_new_tokens):
                raise Failed(f"{answer.num_tokens()} new tokens instead of {case.num_new_tokens}")
        return max(answer.total_s for answer in answers)

    def _ask(self, case: Case, round_number: int) -> list[Answer]:
        bodies = [self._request(prompt, case.num_new_tokens) for prompt in case.prompts(round_number)]
        with Crowd(self._url, case.num_streams) as crowd:
            return crowd.ask([post(path, body) for path, body in bodies], timeout_s=SERVED_S)


def completion(prompt: TokenIds, num_new_tokens: int) -> tuple[str, dict[str, Any]]:
    """A request in OpenAI's words."""
    return "/v1/completions", {
        "prompt": prompt,
        "max_tokens": num_new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
