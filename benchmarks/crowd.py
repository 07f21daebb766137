"""Crowd: many clients of an HTTP server in one thread, made to cost little: they share the server's cores.

It works with any server: whole answers and streams, HTTP/1.0 and 1.1, connections that stay and that end.

    requests = [post("/v1/completions", {"prompt": [1, 2, 3], "stream": True})] * 64
    with Crowd("http://127.0.0.1:5000", len(requests)) as crowd:
        answers = crowd.ask(requests, timeout_s=60)
    for answer in answers:
        print(answer.status, answer.num_events, answer.first_s, answer.total_s, answer.num_tokens())
"""

from __future__ import annotations

import json
import re
import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

RECEIVE_BYTES = 1 << 18
MAX_ANSWER_BYTES = 64 << 20
# Between two looks at the sockets: what a server writes in that time is read at once. Times are as exact.
REST_S = 0.004
LAST_CHUNK = b"\r\n0\r\n\r\n"
DONE = b"[DONE]"


class CrowdError(Exception):
    """A server broke the rules, or was too slow."""


@dataclass
class Answer:
    """What one request got, and when, in seconds since the crowd began to ask."""

    head: bytes = b""
    body: bytes = b""  # without the framing of chunks
    first_s: float = 0.0  # the first byte of the body
    total_s: float = 0.0

    @property
    def status(self) -> int:
        return int(self.head.split(None, 2)[1])

    @property
    def num_events(self) -> int:
        """Those of a stream that hold something; 0 for a whole answer."""
        return (b"\n" + self.body).count(b"\ndata:") - self.body.count(b"data: " + DONE)

    def values(self) -> list[Any]:
        """The JSON of a whole answer, or of each event; CrowdError if it is not well-formed."""
        data = re.findall(rb"^data: ?(.*?)\r?$", self.body, re.MULTILINE) or [self.body]
        try:
            return [json.loads(one) for one in data if one != DONE]
        except ValueError as error:
            raise CrowdError(f"not JSON ({error}): {self.body[-500:]!r}") from None

    def num_tokens(self) -> int | None:
        """New tokens, as the server counts them; None if it does not say.

        OpenAI's servers put `usage` into a stream if asked to (stream_options: {include_usage: true}).
        """
        for value in reversed(self.values()):
            usage = value.get("usage")
            if usage is not None:
                return int(usage["completion_tokens"])
        return None


@dataclass
class _Connection:
    """One client's socket, and the answer under way."""

    sock: socket.socket
    request: bytes = b""
    answer: Answer = field(default_factory=Answer)
    received: bytearray = field(default_factory=bytearray)
    body_start: int | None = None  # once the head is there
    body_bytes: int | None = None  # None: chunked, or until the connection ends
    is_chunked: bool = False
    is_done: bool = True
    is_kept: bool = True  # by the server, for the next request

    def take(self, data: bytes, at_s: float) -> None:
        """The next bytes of the answer; b"" is the end of the connection."""
        self.received += data
        if len(self.received) > MAX_ANSWER_BYTES:
            raise CrowdError(f"an answer has more than {MAX_ANSWER_BYTES} bytes")
        if self.body_start is None:
            self._find_body()
        if self.body_start is None:
            if not data:
                raise CrowdError(f"the server ended a connection before an answer: {self.received[:200]!r}")
            return
        if not self.answer.first_s and len(self.received) > self.body_start:
            self.answer.first_s = at_s
        if self._has_ended(is_cut=not data):
            self._finish(at_s)

    def _find_body(self) -> None:
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        self.body_start = end + 4
        head = self.answer.head = bytes(self.received[:end])
        lines = head.lower()
        self.is_chunked = b"\r\ntransfer-encoding: chunked" in lines
        length = re.search(rb"\r\ncontent-length: *(\d+)", lines)
        self.body_bytes = int(length[1]) if length else None
        self.is_kept = head.startswith(b"HTTP/1.1") and b"\r\nconnection: close" not in lines

    def _has_ended(self, is_cut: bool) -> bool:
        assert self.body_start is not None
        if self.is_chunked:
            # Whole answers and events are JSON, which holds no line breaks of this kind.
            has_ended = self.received.endswith(LAST_CHUNK, self.body_start - 2)
        elif self.body_bytes is not None:
            has_ended = len(self.received) - self.body_start >= self.body_bytes
        else:
            has_ended, self.is_kept = is_cut, False
        if is_cut and not has_ended:
            raise CrowdError(f"the server ended a connection inside an answer: {self.received[-200:]!r}")
        return has_ended

    def _finish(self, at_s: float) -> None:
        self.is_done = True
        self.answer.total_s = at_s
        body = bytes(self.received[self.body_start :])
        self.answer.body = _without_chunks(body) if self.is_chunked else body

    def begin(self, request: bytes) -> None:
        self.request, self.answer, self.received = request, Answer(), bytearray()
        self.body_start = self.body_bytes = None
        self.is_chunked = self.is_done = self.is_kept = False
        self.sock.setblocking(True)
        self.sock.sendall(request)
        self.sock.setblocking(False)


class Crowd:
    """Clients with a connection each, which stay connected from one `ask` to the next."""

    def __init__(self, url: str, num_clients: int, *, rest_s: float = REST_S) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._address = parts.hostname, parts.port or 80
        self._rest_s = rest_s
        self._clients = [_Connection(self._connect()) for _ in range(num_clients)]

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.sock.close()

    def ask(self, requests: Sequence[bytes], *, timeout_s: float) -> list[Answer]:
        """Send one request from each client at once, and wait for all answers. CrowdError."""
        clients = self._clients[: len(requests)]
        assert len(clients) == len(requests)
        for client in clients:
            if not client.is_kept or _has_ended(client.sock):
                client.sock.close()
                client.sock = self._connect()
        start = time.perf_counter()
        with selectors.DefaultSelector() as selector:
            for client, request in zip(clients, requests, strict=True):
                client.begin(request)
                selector.register(client.sock, selectors.EVENT_READ, client)
            num_under_way = len(clients)
            while num_under_way:
                for key, _ in selector.select(timeout=1.0):
                    client = key.data
                    client.take(client.sock.recv(RECEIVE_BYTES), time.perf_counter() - start)
                    if client.is_done:
                        selector.unregister(client.sock)
                        num_under_way -= 1
                if time.perf_counter() - start > timeout_s:
                    raise CrowdError(f"{num_under_way} of {len(clients)} answers took over {timeout_s:g} s")
                if num_under_way:
                    time.sleep(self._rest_s)
        return [client.answer for client in clients]

    def _connect(self) -> socket.socket:
        sock = socket.create_connection(self._address, timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        return sock


def post(path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> bytes:
    """A POST request with a JSON body, ready to be sent."""
    content = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def _has_ended(sock: socket.socket) -> bool:
    """Whether the server has closed a connection, as it does with one that was idle for long."""
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def _without_chunks(framed: bytes) -> bytes:
    """The content of a chunked body: each chunk has its length in front, in hexadecimal."""
    parts, start = [], 0
    while True:
        end = framed.index(b"\r\n", start)
        length = int(framed[start:end].partition(b";")[0], 16)
        if length == 0:
            return b"".join(parts)
        parts.append(framed[end + 2 : end + 2 + length])
        start = end + 2 + length + 2
