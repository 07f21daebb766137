"""A real Redis server for tests: on a free port, nothing on disk, ended by its process."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis

PROGRAM = shutil.which("redis-server")
needs_redis_server = pytest.mark.skipif(PROGRAM is None, reason="redis-server is not installed")


class RedisServer:
    """One redis-server process. After `kill` it can be started again, empty, on the same port."""

    def __init__(self, folder: str, password: str | None = None) -> None:
        self._folder = folder
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        login = "" if password is None else f":{password}@"
        self.url = f"redis://{login}127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """A plain client, to look at what is stored. The caller closes it."""
        return redis.Redis.from_url(self.url, socket_timeout=5)

    def start(self) -> None:
        """Return when the server answers."""
        assert PROGRAM is not None
        command = [PROGRAM, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder]
        command += ["--save", "", "--appendonly", "no", "--loglevel", "warning"]
        if self._password is not None:
            command += ["--requirepass", self._password]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    assert self._process.poll() is None, "redis-server ended at once"
                    assert time.monotonic() < deadline, "redis-server does not answer"
                    time.sleep(0.01)

    def kill(self) -> None:
        """As a crash does it: no farewell to anyone."""
        if self._process is not None:
            self._process.kill()  # also ends it while it is paused
            self._process.wait(timeout=10)
            self._process = None

    def pause(self) -> None:
        """From now on it accepts connections (the kernel does) and answers nothing."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@contextmanager
def running_redis(password: str | None = None) -> Iterator[RedisServer]:
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(folder, password)
        try:
            server.start()
            yield server
        finally:
            server.kill()
