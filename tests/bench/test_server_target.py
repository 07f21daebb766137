"""ServerTarget against servers that are not ours: some know little, some break off."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pocketlm.bench.asked import Asked, AskFailed
from pocketlm.bench.server_target import ServerTarget, first_model, server_client
from pocketlm.errors import PocketLMError

Answer = tuple[int, str]  # status and body

WORDS = [{"choices": [{"text": f"word{i} ", "finish_reason": None}]} for i in range(3)]
END: dict[str, Any] = {"choices": [{"text": "", "finish_reason": "length"}]}
USAGE: dict[str, Any] = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}


def stream(*events: dict[str, Any], done: bool = True) -> Answer:
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return 200, text + ("data: [DONE]\n\n" if done else "")


@contextmanager
def server(answer: Callable[[dict[str, Any]], Answer], models: Answer = (404, "")) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.answer(answer({**body, "key": self.headers["authorization"]}))

        def answer(self, answer: Answer) -> None:
            data = answer[1].encode()
            self.send_response(answer[0])
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_address[1]}"
        finally:
            httpd.shutdown()
            thread.join()


def ask(url: str, key: str | None = None) -> tuple[ServerTarget, Asked]:
    async def run() -> tuple[ServerTarget, Asked]:
        async with server_client(url, key) as client:
            target, asked = ServerTarget(client, "m"), Asked(0.0)
            await target.settle_extras()
            await target.ask("a prompt", 5, asked)
            return target, asked

    return asyncio.run(run())


def test_the_servers_own_count_of_tokens_is_taken() -> None:
    with server(lambda body: stream(*WORDS, END, USAGE)) as url:
        target, asked = ask(url)
    assert (asked.num_tokens, asked.num_prompt_tokens, len(asked.arrived_at)) == (5, 7, 3)
    assert target.ignores_eos and target.counts_tokens


def test_a_server_that_refuses_what_it_does_not_know_is_asked_plainly() -> None:
    bodies = []

    def answer(body: dict[str, Any]) -> Answer:
        bodies.append(body)
        known = {"model", "prompt", "max_tokens", "temperature", "stream", "key"}
        return stream(*WORDS, END) if body.keys() <= known else (400, '{"error": "unknown field"}')

    with server(answer) as url:
        target, asked = ask(f"{url}/v1/", key="secret")
    assert asked.num_tokens == 3 and asked.num_prompt_tokens is None and not target.ignores_eos
    assert not target.counts_tokens
    assert bodies[-1]["prompt"] == "a prompt" and bodies[-1]["key"] == "Bearer secret"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ((429, '{"error": {"message": "slow \\u001b[31mdown"}}'), "429"),
        ((500, "oops"), "500"),
        (stream(*WORDS, done=False), "cut off"),
        (stream(WORDS[0], {"error": {"message": "engine died"}}), "error in the stream"),
        (stream(WORDS[0], {"choices": [{"text": "", "finish_reason": "timeout"}]}), "ended by timeout"),
        ((200, "data: nonsense\n\n"), "not an event"),
    ],
)
def test_what_goes_wrong_has_a_kind(answer: Answer, kind: str) -> None:
    async def run(url: str) -> None:
        async with server_client(url, None) as client:
            await ServerTarget(client, "m").ask("a", 5, Asked(0.0))

    with server(lambda body: answer) as url, pytest.raises(AskFailed) as caught:
        asyncio.run(run(url))
    assert caught.value.kind == kind
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ((404, "not here"), "answers 404 not here"),
        ((200, "{}"), "lists no model"),
        ((200, '{"data": []}'), "lists no model"),
        ((200, '{"data": [{"id": "\\u001b[31mred"}]}'), "name another model"),
    ],
)
def test_a_server_that_names_no_model(models: Answer, message: str) -> None:
    async def run(url: str) -> None:
        async with server_client(url, None) as client:
            await first_model(client)

    with server(lambda body: stream(), models) as url, pytest.raises(PocketLMError, match=message):
        asyncio.run(run(url))
