"""A server process that is stopped, starved or misused while clients are at it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import pytest
from checkpoints import write_checkpoint
from command import COMMAND
from served import wait_until

from pocketlm.hardware import CGROUP_ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")

LONG = {"prompt": "Kubernetes is a", "max_tokens": 1000, "n": 16, "ignore_eos": True, "temperature": 1}


class Process:
    """`pocketlm serve` on a free port."""

    def __init__(self, *arguments: str, into: Callable[[], None] | None = None) -> None:
        command = [*COMMAND, "serve", "--port", "0", *arguments]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=into)
        self.pid = self._process.pid
        self.errors = ""
        self._has_started = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._has_started.wait(timeout=60)
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.errors)
        assert found, self.errors
        self.url, self.port = found[0], int(found[1])

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self.errors += line
                if line.startswith("curl "):
                    self._has_started.set()
        self._has_started.set()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self, timeout_s: float) -> int:
        """Its exit code."""
        code = self._process.wait(timeout=timeout_s)
        self._reader.join(timeout=10)
        return code

    def kill(self) -> None:
        self._process.kill()
        self.end(10)


@contextmanager
def serving(*arguments: str, into: Callable[[], None] | None = None) -> Iterator[Process]:
    process = Process(*arguments, into=into)
    try:
        yield process
    finally:
        process.kill()


def post(process: Process, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """Over a connection of its own, by hand: whatever happens to the connection is raised."""
    connection = HTTPConnection("127.0.0.1", process.port, timeout=60)
    connection.connect()
    try:
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def is_turned_away(client: httpx.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 503
    except httpx.TransportError:
        return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_who_was_let_in_is_answered(number: signal.Signals) -> None:
    """Clients come as fast as they can, half of them for a stream, until the door is closed."""
    answers: list[tuple[bool, int, str]] = []

    def come_again_and_again(client: int) -> None:
        for i in range(10_000):
            is_stream = (client + i) % 2 == 0
            body = {"prompt": f"Client {client}", "max_tokens": 20, "seed": i, "stream": is_stream}
            try:
                status, text = post(process, "/generate", {**body, "ignore_eos": True})
            except ConnectionRefusedError:
                return
            answers.append((is_stream, status, text))

    with serving() as process, ThreadPoolExecutor(24) as pool:
        clients = [pool.submit(come_again_and_again, i) for i in range(24)]
        wait_until(lambda: len(answers) > 100, timeout_s=60)
        process.send(number)
        assert process.end(30) == 0
        for client in clients:
            client.result(timeout=30)  # any other end of a connection is raised here
    for is_stream, status, text in answers:
        assert status == 200, text
        if is_stream:
            *_, text, done = text.strip().split("\n\n")
            assert done == "data: [DONE]"
        whole = json.loads(text.removeprefix("data: "))
        assert (whole["finish_reason"], whole["usage"]["completion_tokens"]) == ("length", 20)
    assert "Traceback" not in process.errors


def test_what_takes_too_long_ends_with_what_there_is() -> None:
    with serving("--drain-timeout", "1", "--no-cache") as process, ThreadPoolExecutor(4) as pool:
        bodies = [{**LONG, "stream": i % 2 == 0} for i in range(4)]
        answers = [pool.submit(post, process, "/v1/completions", body) for body in bodies]
        with httpx.Client(base_url=process.url) as client:
            wait_until(
                lambda: client.get("/health").json()["engines"]["bundled"]["running"] == 64, timeout_s=60
            )
            process.send(signal.SIGTERM)
            start = time.monotonic()
            # On a connection that is open already, as a load balancer has it.
            wait_until(lambda: is_turned_away(client))
        assert process.end(30) == 0
        assert time.monotonic() - start < 10
        for body, answer in zip(bodies, answers, strict=True):
            status, text = answer.result(timeout=10)
            assert status == 200
            if body["stream"]:
                assert text.endswith("data: [DONE]\n\n")
                assert text.count('"finish_reason":"timeout"') == 16
            else:
                choices = json.loads(text)["choices"]
                assert {choice["finish_reason"] for choice in choices} == {"timeout"}
                assert all(choice["text"] for choice in choices)
    assert "Traceback" not in process.errors and "Cancel" not in process.errors


def test_a_body_that_never_comes_does_not_keep_the_server() -> None:
    with (
        serving("--drain-timeout", "1") as process,
        socket.create_connection(("127.0.0.1", process.port)) as sock,
    ):
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b'Content-Length: 100\r\n\r\n{"prompt": '
        )
        wait_until(lambda: httpx.get(f"{process.url}/health").status_code == 200)  # it was read by then
        process.send(signal.SIGTERM)
        assert process.end(30) == 0
        sock.settimeout(10)
        answer = sock.makefile("rb").read().decode()
        assert answer.startswith("HTTP/1.1 503 ") and "the server is shutting down" in answer
    assert "Traceback" not in process.errors


def test_who_is_told_twice_to_stop_does_not_wait() -> None:
    with serving("--drain-timeout", "600") as process, ThreadPoolExecutor(2) as pool:
        answers = [
            pool.submit(post, process, "/v1/completions", {**LONG, "stream": s}) for s in (True, False)
        ]
        wait_until(lambda: httpx.get(f"{process.url}/health").json()["engines"]["bundled"]["running"] == 32)
        process.send(signal.SIGINT)
        wait_until(lambda: "Waiting for connections to close" in process.errors)
        process.send(signal.SIGINT)
        assert process.end(30) == 0
        for answer in answers:
            _, text = answer.result(timeout=10)
            assert "the engine was stopped" in text or "shutting down" in text
    assert "Traceback" not in process.errors


def test_a_load_under_way_does_not_keep_the_server(tmp_path: Path) -> None:
    """Nor does the process crash, with a thread in the middle of compiled code."""
    large = str(write_checkpoint(tmp_path / "large", seed=1, n_embd=512, n_layer=6, n_head=8))
    with serving("bundled", large) as process, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, process, "/generate", {"prompt": "a", "model": large})
        with httpx.Client(base_url=process.url) as client:
            wait_until(lambda: client.get("/models").json()["models"][1]["state"] == "loading")
        process.send(signal.SIGTERM)
        assert process.end(30) == 0
        assert answer.result(timeout=10) == (503, '{"error":"the server is shutting down"}')
    assert "Traceback" not in process.errors


def ask_all(process: Process) -> list[str]:
    """Several clients at once; their texts."""
    bodies = [{"prompt": f"Client {i}", "max_tokens": 100, "seed": i, "cache": False} for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: post(process, "/generate", body), bodies))
    assert {status for status, _ in answers} == {200}
    return [json.loads(text)["generated_text"] for _, text in answers]


def check_deadline(process: Process) -> None:
    """A request that would take far longer ends when it should, give or take what scheduling takes."""
    start = time.monotonic()
    status, text = post(process, "/v1/completions", {**LONG, "timeout": 1})
    assert time.monotonic() - start < 10
    assert status == 200 and '"finish_reason":"timeout"' in text


@contextmanager
def paused_half_of_the_time(process: Process) -> Iterator[None]:
    is_over = threading.Event()

    def pause() -> None:
        while not is_over.wait(0.05):
            process.send(signal.SIGSTOP)
            time.sleep(0.05)
            process.send(signal.SIGCONT)

    thread = threading.Thread(target=pause)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_a_process_that_gets_a_cpu_half_of_the_time() -> None:
    first_cpu = min(os.sched_getaffinity(0))
    with serving(into=lambda: os.sched_setaffinity(0, {first_cpu})) as process:
        assert "num_threads=1: processors in the affinity mask" in process.errors
        expected = ask_all(process)
        with paused_half_of_the_time(process):
            for _ in range(5):
                assert ask_all(process) == expected
            check_deadline(process)
        process.send(signal.SIGTERM)
        assert process.end(30) == 0
    assert "Traceback" not in process.errors


class CpuQuota:
    """A cgroup of the test's own, of whichever version there is; pytest.skip if none can be made."""

    def __init__(self, cpus: float) -> None:
        name, quota = f"pocketlm-test-{os.getpid()}", str(int(cpus * 100_000))
        if (CGROUP_ROOT / "cpu").is_dir():
            self._folder = CGROUP_ROOT / "cpu" / name
            self._set, self._unlimited = "cpu.cfs_quota_us", "-1"
        else:
            self._folder = CGROUP_ROOT / name
            self._set, self._unlimited = "cpu.max", "max"
        try:
            self._folder.mkdir()
            self._write(self._set, quota)  # of a period of 100 000 us, the default of both versions
        except OSError as error:
            self.remove()
            pytest.skip(f"cannot limit the CPU with a cgroup here: {error.strerror}")

    def enter(self) -> None:
        """Move the calling process into it."""
        self._write("cgroup.procs", "0")

    def lift(self) -> None:
        self._write(self._set, self._unlimited)

    def remove(self) -> None:
        if self._folder.is_dir():
            wait_until(self._is_removed)

    def _is_removed(self) -> bool:
        try:
            self._folder.rmdir()
        except OSError:  # a process that has ended may still be counted for a moment
            return False
        return True

    def _write(self, file: str, value: str) -> None:
        (self._folder / file).write_text(value)


@pytest.fixture
def half_a_cpu() -> Iterator[CpuQuota]:
    quota = CpuQuota(0.5)
    yield quota
    quota.remove()


def test_a_cpu_quota_of_half_a_core(half_a_cpu: CpuQuota) -> None:
    with serving(into=half_a_cpu.enter) as process:
        assert "num_threads=1: cgroup CPU quota of 0.5" in process.errors
        before = throttled(process)
        answers = [ask_all(process) for _ in range(5)]
        while len(answers) < 50 and throttled(process)[0] == before[0]:  # all may fit in its half of the time
            answers.append(ask_all(process))
        check_deadline(process)
        periods, seconds = throttled(process)
        assert periods > before[0] and seconds > before[1]
        half_a_cpu.lift()
        expected = ask_all(process)
        assert answers == [expected] * len(answers)
        process.send(signal.SIGTERM)
        assert process.end(30) == 0
    assert "Traceback" not in process.errors


def throttled(process: Process) -> tuple[float, float]:
    """Periods and seconds lost to the quota, as /metrics tells them."""
    text = httpx.get(f"{process.url}/metrics").text
    periods, seconds = (
        float(re.findall(rf"^pocketlm:cgroup_throttled_{unit}_total (\S+)$", text, re.MULTILINE)[0])
        for unit in ("periods", "seconds")
    )
    return periods, seconds
