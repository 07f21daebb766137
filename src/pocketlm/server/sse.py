"""Server-sent events: a response that is written while it is made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pocketlm.server.disconnect import unless_disconnected

COMMENT = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"
WRITE_TIMEOUT_S = 30.0  # a client that takes nothing for this long has left without a word


def encode(event: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"


class EventStream(Response):
    """Sends `first`, and chunks as they come. When the response ends, however it does, `held` is let go."""

    media_type = "text/event-stream"

    def __init__(
        self, first: bytes, chunks: AsyncIterator[bytes], headers: Mapping[str, str], held: AsyncExitStack
    ) -> None:
        super().__init__(headers={**headers, "Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._chunks, self._held = first, chunks, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            with suppress(ClientDisconnect):  # Edge has seen it
                await unless_disconnected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with _WriteTimer() as timer:
            await timer.watch(send({"type": "http.response.body", "body": self._first, "more_body": True}))
            async for chunk in self._chunks:
                await timer.watch(send({"type": "http.response.body", "body": chunk, "more_body": True}))
            await timer.watch(send({"type": "http.response.body", "body": b"", "more_body": False}))


class _WriteTimer:
    """Cancels the task in which it is made when a write takes too long.

    One timer looks after all writes of a stream now and then: one for each would cost more than the write.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._begun_at: float | None = None  # the write under way

    def __enter__(self) -> _WriteTimer:
        self._look()
        return self

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()

    async def watch(self, write: Awaitable[None]) -> None:
        self._begun_at = self._loop.time()
        await write
        self._begun_at = None

    def _look(self) -> None:
        if self._begun_at is not None and self._loop.time() - self._begun_at > WRITE_TIMEOUT_S:
            self._task.cancel()
            return
        self._timer = self._loop.call_later(WRITE_TIMEOUT_S / 4, self._look)
