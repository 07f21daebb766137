"""Edge: what happens to every HTTP request before and after its route: identity, key, log line, count."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketlm.errors import ModelUnavailable, Unauthorized
from pocketlm.server import errors
from pocketlm.server.api_keys import ApiKeys
from pocketlm.server.metrics import Metrics
from pocketlm.server.request_log import RequestRecord, log_request

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
OPEN_PATHS = {"/health", "/health/live", "/health/ready"}  # who asks these carries no key
UNKNOWN_ROUTE = "unmatched"


class Edge:
    """ASGI middleware. What it knows is in `scope["state"]`: request_id, owner and record.

    The owner, to whom limits and turns apply, is the name of the API key, or the client's address
    where no keys are asked for.
    """

    def __init__(self, app: ASGIApp, *, api_keys: ApiKeys, metrics: Metrics) -> None:
        self._app = app
        self._api_keys = api_keys
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        record = RequestRecord(request_id)
        state: dict[str, Any] = scope.setdefault("state", {})
        client = scope["client"][0] if scope.get("client") else "unknown"  # a Unix socket has no address
        state |= {"request_id": request_id, "owner": client, "record": record}
        exchange = _Exchange(receive, send, request_id)
        try:
            await self._answer(scope, headers, exchange)
            exchange.close()
        except asyncio.CancelledError:  # the server stops, and has waited for this request long enough
            if not exchange.has_started:
                error = ModelUnavailable("the server is shutting down; send the request again")
                record.error_code = error.code
                await errors.render(scope["path"], error)(scope, receive, exchange.send)
            exchange.close()
        except Exception:
            exchange.fail()
            raise
        finally:
            self._finish(scope, record, exchange.status, client, time.perf_counter() - start)

    async def _answer(self, scope: Scope, headers: Headers, exchange: _Exchange) -> None:
        app, state = self._app, scope["state"]
        if self._api_keys.enabled and scope["path"] not in OPEN_PATHS:
            try:
                state["owner"] = self._api_keys.check(headers)
            except Unauthorized as error:
                state["record"].error_code = error.code
                self._metrics.rejected(error.code)
                app = errors.render(scope["path"], error)
        await app(scope, exchange.receive, exchange.send)

    def _finish(self, scope: Scope, record: RequestRecord, status: int, client: str, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
        self._metrics.http_request(scope["method"], route, status)
        key = {"key": scope["state"]["owner"]} if scope["state"]["owner"] != client else {}
        fields = {"seconds": round(seconds, 4), "client": client, **key}
        fields |= record.fields()
        log_request(scope["method"], scope["path"], status, fields)


class _Exchange:
    """The two ends of one request, watched: how it is answered, and whether the client stays for it."""

    def __init__(self, receive: Receive, send: Send, request_id: str) -> None:
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._status = 500  # until a response starts; it is what the server answers if none does
        self.has_started = self._is_answered = False
        self._is_cut = False  # by a client that did not stay for the whole response

    @property
    def status(self) -> int:
        return errors.CLIENT_CLOSED_REQUEST if self._is_cut else self._status

    def close(self) -> None:
        """The application has returned; a response that it left open was for a client it gave up."""
        self._is_cut = self._is_cut or (self.has_started and not self._is_answered)

    def fail(self) -> None:
        """The application raised."""
        if not self._is_cut:
            self._status = 500

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._is_answered:
            self._is_cut = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self.has_started = message["status"], True
            MutableHeaders(scope=message)["X-Request-Id"] = self._request_id
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._is_answered = True
        try:
            await self._send(message)
        except OSError:  # how a server may say that nobody is there any more
            self._is_cut = True
            raise
