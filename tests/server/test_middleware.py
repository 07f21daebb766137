"""Edge, around a small application behind a real port: identity, keys, the log line, the count."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from pocketlm.server.api_keys import ApiKeys
from pocketlm.server.metrics import Metrics
from pocketlm.server.middleware import Edge

KEY = "ann-secret-1"


class NoModels:
    def entries(self) -> list[Any]:
        return []


def inner_app() -> FastAPI:
    app = FastAPI()

    @app.get("/things/{name}")
    async def thing(request: Request, name: str) -> dict[str, str]:
        return {"id": request.state.request_id, "owner": request.state.owner}

    @app.post("/generate")
    async def generate(request: Request) -> JSONResponse:
        await request.body()
        request.state.record.model = "bundled"
        request.state.record.num_output_tokens = 7
        return JSONResponse({})

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "healthy"}

    @app.get("/bug")
    async def bug() -> None:
        raise KeyError("secret")

    @app.get("/slow")
    async def slow(request: Request) -> Response:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return Response(status_code=499)

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            while True:
                yield b"more\n"
                await asyncio.sleep(0.005)

        return StreamingResponse(chunks())

    @app.get("/cut")
    async def cut() -> Response:
        return Cut()

    @app.get("/broken")
    async def broken() -> Response:
        return Broken()

    return app


class Cut(Response):
    """A response that is given up in the middle, as that to a client who does not read."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})


class Broken(Cut):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, send)
        raise KeyError("secret")


@dataclass
class Served:
    client: httpx.Client
    metrics: Metrics
    caplog: pytest.LogCaptureFixture

    def lines(self) -> list[dict[str, Any]]:
        """What the log says of each request so far."""
        return [
            record.__dict__["fields"] for record in self.caplog.records if record.getMessage() == "request"
        ]

    def line(self) -> dict[str, Any]:
        wait_until(lambda: len(self.lines()) > 0)  # it is written just after the response
        [line] = self.lines()
        return line

    def count(self, series: str) -> float:
        for line in self.metrics.render().decode().splitlines():
            if line.startswith(f"pocketlm:{series} "):
                return float(line.split()[-1])
        return 0.0


@pytest.fixture
def serve(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[..., Served]]:
    """Starts the application behind Edge, with these API keys."""
    caplog.set_level(logging.DEBUG, "pocketlm")
    running: list[tuple[uvicorn.Server, threading.Thread, httpx.Client]] = []

    def start(*keys: str, file: Path | None = None) -> Served:
        metrics = Metrics(NoModels())
        app = inner_app()
        app.add_middleware(Edge, api_keys=ApiKeys(keys, file), metrics=metrics)
        sock = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none"))
        thread = threading.Thread(target=server.run, args=([sock],))
        thread.start()
        client = httpx.Client(base_url=f"http://127.0.0.1:{sock.getsockname()[1]}", timeout=30)
        running.append((server, thread, client))
        return Served(client, metrics, caplog)

    yield start
    for server, thread, client in running:
        client.close()
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_a_request_keeps_the_id_it_brings(serve: Callable[..., Served]) -> None:
    served = serve()
    ids = ["a", "trace-1_2.3", "x" * 128]
    for request_id in ids:
        response = served.client.get("/things/x", headers={"X-Request-Id": request_id})
        assert response.headers["x-request-id"] == response.json()["id"] == request_id
    wait_until(lambda: [line["request_id"] for line in served.lines()] == ids)


def test_any_other_request_gets_one(serve: Callable[..., Served]) -> None:
    served = serve()
    seen = {served.client.get("/things/x").json()["id"]}
    for request_id in ["", "x" * 129, "a b", "a\tb", "é", '"', "a/b"]:
        headers = {b"X-Request-Id": request_id.encode("latin-1")}
        response = served.client.get("/things/x", headers=headers)
        assert response.headers["x-request-id"] == response.json()["id"]
        seen.add(response.json()["id"])
    assert len(seen) == 8 and all(re.fullmatch(r"[0-9a-f]{32}", new) for new in seen)


def test_the_owner_is_the_client_or_the_key(serve: Callable[..., Served]) -> None:
    assert serve().client.get("/things/x").json()["owner"] == "127.0.0.1"
    served = serve(f"ann:{KEY}")
    served.caplog.clear()
    response = served.client.get("/things/x", headers={"Authorization": f"Bearer {KEY}"})
    assert response.json()["owner"] == "ann"
    assert served.line()["key"] == "ann" and served.line()["client"] == "127.0.0.1"


def test_every_route_but_health_asks_for_a_key(serve: Callable[..., Served]) -> None:
    served = serve(f"ann:{KEY}")
    paths = ["/things/x", "/generate", "/bug", "/nothing", "/healthy", "/health/x", "//health", "/docs"]
    for path in paths:
        for method in ("GET", "POST", "OPTIONS"):
            response = served.client.request(method, path)
            assert response.status_code == 401, (method, path)
            assert response.headers["www-authenticate"] == "Bearer" and response.headers["x-request-id"]
            assert "Authorization: Bearer KEY" in response.json()["error"]
    wait_until(lambda: len(served.lines()) == 3 * len(paths))
    assert all((x["status"], x["error_code"]) == (401, "invalid_api_key") for x in served.lines())
    assert served.count('admission_rejections_total{reason="invalid_api_key"}') == 3 * len(paths)


def test_health_needs_no_key_and_v1_answers_as_openai_does(serve: Callable[..., Served]) -> None:
    served = serve(KEY)
    assert served.client.get("/health").status_code == 200
    error = served.client.get("/v1/models", headers={"X-API-Key": "a wrong one"}).json()["error"]
    assert error["type"] == "authentication_error" and error["code"] == "invalid_api_key"
    assert KEY not in served.caplog.text and "a wrong one" not in served.caplog.text


def test_a_refused_upload_hears_why_and_the_connection_lives_on(serve: Callable[..., Served]) -> None:
    served = serve(KEY)
    content = b" " * 5_000_000
    for _ in range(2):
        assert served.client.post("/generate", content=content).status_code == 401
    headers = {"X-API-Key": KEY}
    assert served.client.post("/generate", content=content, headers=headers).status_code == 200


def test_a_request_is_one_line_with_what_its_route_knows(serve: Callable[..., Served]) -> None:
    served = serve()
    served.client.post("/generate?token=secret", content=b"{}")
    line = served.line()
    assert (line["method"], line["path"], line["status"]) == ("POST", "/generate", 200)
    assert (line["model"], line["output_tokens"], line["client"]) == ("bundled", 7, "127.0.0.1")
    assert line["seconds"] >= 0 and "key" not in line
    assert "secret" not in str(line)


def test_requests_are_counted_by_the_template_of_their_route(serve: Callable[..., Served]) -> None:
    served = serve()
    for name in "abc":
        served.client.get(f"/things/{name}")
        served.client.get(f"/{name}")
    served.client.post("/things/a")
    wait_until(lambda: len(served.lines()) == 7)
    assert served.count('http_requests_total{method="GET",route="/things/{name}",status="200"}') == 3
    assert served.count('http_requests_total{method="GET",route="unmatched",status="404"}') == 3
    assert served.count('http_requests_total{method="POST",route="/things/{name}",status="405"}') == 1


def test_a_bug_is_a_500(serve: Callable[..., Served]) -> None:
    served = serve()
    assert served.client.get("/bug").status_code == 500
    assert served.line()["status"] == 500
    assert served.count('http_requests_total{method="GET",route="/bug",status="500"}') == 1


@pytest.mark.parametrize("path", ["/slow", "/stream"])
def test_a_client_that_leaves_is_a_499(serve: Callable[..., Served], path: str) -> None:
    served = serve()
    port = served.client.base_url.port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        if path == "/stream":
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
    assert served.line()["status"] == 499
    assert served.count(f'http_requests_total{{method="GET",route="{path}",status="499"}}') == 1


def test_an_answer_that_is_complete_is_no_499(serve: Callable[..., Served]) -> None:
    """A client that closes its connection after the answer is the usual thing."""
    served = serve()
    served.client.post("/generate", content=b"{}", headers={"Connection": "close"})
    assert served.line()["status"] == 200


@pytest.mark.parametrize(("path", "status"), [("/cut", 499), ("/broken", 500)])
def test_a_response_that_does_not_end_is_no_200(serve: Callable[..., Served], path: str, status: int) -> None:
    served = serve()
    with pytest.raises(httpx.RemoteProtocolError):
        served.client.get(path)
    assert served.line()["status"] == status
