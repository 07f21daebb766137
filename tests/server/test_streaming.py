"""Server-sent events over a real port: pieces as they are made, the whole at the end, nothing left over."""

from __future__ import annotations

import gc
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_decoder import FakeDecoder
from gate import Gate
from served import RunningServer, bundled_model, fake_model, is_idle, running_server, wait_until

from pocketlm.config import EngineConfig
from pocketlm.loading import load_model
from pocketlm.server.flights import Flight
from pocketlm.server.runs import Run

ROUTES = {
    "/generate": {"prompt": "!"},
    "/v1/completions": {"prompt": "!"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "!"}]},
}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(bundled_model()) as server:
        yield server
    assert is_idle(bundled_model())


def events(text: str) -> list[Any]:
    """The data of each event; comments are left out."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") for block in blocks)
    return [block[6:] if block == "data: [DONE]" else json.loads(block[6:]) for block in blocks]


def stream(server: RunningServer, path: str, **body: Any) -> list[Any]:
    response = server.client.post(path, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return events(response.text)


def test_the_pieces_of_generate_join_to_the_whole(server: RunningServer) -> None:
    body = {"prompt": "Kubernetes is a", "max_length": 40, "seed": 3, "cache": False}
    *pieces, last, done = stream(server, "/generate", **body)
    whole = server.client.post("/generate", json=body).json()
    assert done == "[DONE]"
    assert len(pieces) > 10
    assert whole["prompt"] + "".join(piece["text"] for piece in pieces) == whole["generated_text"]
    for answer in (last, whole):
        del answer["inference_time_seconds"]
    assert last == whole
    assert pieces[-1]["finish_reason"] == whole["finish_reason"]
    assert all("finish_reason" not in piece for piece in pieces[:-1])


def test_a_stream_with_drafts_has_the_same_pieces(server: RunningServer) -> None:
    """One event a token, although some come from the same step, and each is counted."""
    body = {
        "prompt": "Pods run containers. Pods run containers. Pods",
        "max_tokens": 50,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": 1,
    }

    def choices(server: RunningServer) -> list[Any]:
        return [event["choices"] for event in stream(server, "/v1/completions", **body) if event != "[DONE]"]

    with running_server(load_model("bundled", EngineConfig(dtype="float32", speculative_tokens=5))) as fast:
        fast_choices = choices(fast)
        assert fast.sample("spec_decode_num_draft_tokens_total") > 0
        assert 0 < fast.sample("spec_decode_num_accepted_tokens_total") < 50
        assert fast.sample("generation_tokens_total") == 50
        assert fast.sample("inter_token_latency_seconds_count") == 49
        wait_until(lambda: is_idle(fast.model))

    def joined(choices: list[Any]) -> tuple[str, list[Any]]:
        parts = [part for event in choices for part in event]
        return "".join(part["text"] for part in parts), [
            value for part in parts if part["logprobs"] for value in part["logprobs"]["token_logprobs"]
        ]

    assert joined(fast_choices) == joined(choices(server))
    assert len(joined(fast_choices)[1]) == 50


def test_several_answers_in_one_stream(server: RunningServer) -> None:
    *pieces, last, _ = stream(
        server, "/generate", prompt="Pods are", seed=3, num_return_sequences=3, cache=False
    )
    for index, text in enumerate(last["generated_texts"]):
        assert "Pods are" + "".join(p["text"] for p in pieces if p["index"] == index) == text


def test_a_stop_string_is_never_seen(server: RunningServer) -> None:
    *pieces, last, _ = stream(
        server, "/generate", prompt="Kubernetes is", stop=[" the", "a "], seed=1, max_length=200, cache=False
    )
    text = "".join(piece["text"] for piece in pieces)
    assert last["finish_reason"] == "stop" and " the" not in text and "a " not in text


@pytest.mark.parametrize("path", ROUTES)
def test_the_first_bytes_leave_before_the_generation_ends(path: str) -> None:
    decoder = Gate()
    with running_server(fake_model(decoder)) as server:
        decoder.let_through(2)
        body = {**ROUTES[path], "max_tokens": 20, "stream": True}
        with server.client.stream("POST", path, json=body) as response:
            chunks = response.iter_raw()
            assert next(chunks).startswith(b"data: ")
            decoder.open()
            rest = b"".join(chunks).decode()
        assert rest.endswith("data: [DONE]\n\n")


def test_a_comment_keeps_the_connection_alive_while_the_first_token_is_waited_for() -> None:
    decoder = Gate()
    with running_server(fake_model(decoder), sse_keep_alive=0.05) as server:
        body = {"prompt": "!", "max_tokens": 3, "stream": True}
        with server.client.stream("POST", "/generate", json=body) as response:
            chunks = response.iter_raw()
            assert next(chunks) == b": keep-alive\n\n"
            decoder.open()
            assert events(b"".join(chunks).decode())[-1] == "[DONE]"


@pytest.mark.parametrize("path", ROUTES)
def test_an_error_before_the_first_piece_has_its_own_status(server: RunningServer, path: str) -> None:
    for change, status in [({"temperature": 3}, 400), ({"model": "nobody"}, 404)]:
        response = server.client.post(path, json={**ROUTES[path], **change, "stream": True})
        assert response.status_code == status
        assert "error" in response.json()


@pytest.mark.parametrize("path", ROUTES)
def test_an_error_in_the_middle_is_an_event_and_the_end(path: str) -> None:
    decoder = FailsLater(after=3)
    with running_server(fake_model(decoder)) as server:
        response = server.client.post(path, json={**ROUTES[path], "max_tokens": 20, "stream": True})
        assert response.status_code == 200
        *pieces, last = events(response.text)
        assert pieces and "[DONE]" not in response.text
        message = last["error"] if path == "/generate" else last["error"]["message"]
        assert "forward pass failed" in message and "secret" not in response.text
        assert server.client.post("/generate", json={"prompt": "!", "max_tokens": 2}).status_code == 200


class FailsLater(FakeDecoder):
    """One forward pass fails, some steps after the first."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def forward(self, inputs: Any, kv_cache: Any) -> Any:
        self.after -= 1
        if self.after == 0:
            raise RuntimeError("secret")
        return super().forward(inputs, kv_cache)


def test_a_reader_that_stands_still_does_not_slow_the_others() -> None:
    """It asks for far more than its socket's buffers hold, and reads nothing."""
    with running_server(bundled_model()) as server:
        sockets = [request_by_hand(server, {"n": 4, "logprobs": 20, "max_tokens": 800}) for _ in range(2)]
        for seed in range(5):
            body = {"prompt": "Pods are", "max_length": 30, "seed": seed, "cache": False}
            assert server.client.post("/generate", json=body, timeout=20).status_code == 200
        wait_until(lambda: is_idle(bundled_model()), timeout_s=60)  # theirs were computed to the end, too
        for sock in sockets:
            assert read_all(sock).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            sock.close()


def request_by_hand(server: RunningServer, fields: dict[str, Any]) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((host, int(port)))
    content = json.dumps({"prompt": "Pods are", "stream": True, "ignore_eos": True, **fields}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    sock.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return sock


def read_all(sock: socket.socket) -> bytes:
    sock.settimeout(30)
    received = bytearray()
    while not received.endswith(b"\r\n0\r\n\r\n"):
        chunk = sock.recv(65536)
        assert chunk
        received += chunk
    return bytes(received)


@pytest.mark.parametrize("phase", ["waiting", "reading the prompt", "generating"])
@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_frees_everything(phase: str, is_stream: bool) -> None:
    decoder = Gate()
    model = fake_model(decoder, max_num_seqs=1)
    with running_server(model) as server:
        others = []
        if phase == "waiting":
            # More than there are seats, so that the last one waits in the queue.
            for seed in range(3):
                body = {"prompt": "!", "max_tokens": 5, "seed": seed}
                others.append(
                    threading.Thread(target=server.client.post, args=("/generate",), kwargs={"json": body})
                )
                others[-1].start()
            wait_until(lambda: server.app.state.service.registry.entries()[0].engine.stats().num_waiting >= 1)
        sock = request_by_hand(server, {"prompt": "!", "max_tokens": 200, "stream": is_stream})
        if phase == "generating":
            decoder.let_through(5)
        engine = server.app.state.service.registry.entries()[0].engine
        wait_until(lambda: engine.num_jobs == 1 + len(others))
        if phase != "waiting":
            wait_until(decoder.entered.is_set)
        sock.close()
        wait_until(lambda: engine.num_jobs == len(others))
        decoder.open()
        for thread in others:
            thread.join(timeout=20)
        wait_until(lambda: is_idle(model))
        assert server.sample("request_success_total", model_name="bundled", finished_reason="abort") == 1


def test_streams_are_bounded() -> None:
    decoder = Gate()
    with running_server(fake_model(decoder), max_streams=1) as server:
        decoder.let_through(1)
        body = {"prompt": "!", "max_tokens": 20, "stream": True}
        with server.client.stream("POST", "/generate", json=body):
            refused = server.client.post("/generate", json={**body, "seed": 1})
            assert refused.status_code == 429 and "1 streams are open" in refused.json()["error"]
            assert refused.headers["retry-after"] == "1"
            decoder.open()
        wait_until(lambda: server.app.state.service.num_streams == 0)
        assert server.client.post("/generate", json=body).status_code == 200


def test_a_connection_that_drops_while_the_body_is_sent_is_nothing_special(server: RunningServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    for content in (b"", b'{"prompt": "a'):
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(
                b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\n\r\n" + content
            )
            time.sleep(0.05)
    assert server.client.get("/health").status_code == 200


def test_many_streams_at_once_are_each_as_alone(server: RunningServer) -> None:
    bodies = [{"prompt": f"Request {i} about pods", "max_length": 40, "seed": i} for i in range(32)]
    results: dict[int, str] = {}

    def ask(i: int) -> None:
        with httpx.stream(
            "POST", f"{server.url}/generate", json={**bodies[i], "stream": True}, timeout=60
        ) as r:
            results[i] = events(r.read().decode())[-2]["generated_text"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for i, body in enumerate(bodies):
        alone = server.client.post("/generate", json={**body, "cache": False}).json()
        assert results[i] == alone["generated_text"]


@pytest.mark.parametrize("body", [{}, {"cache": False}, {"num_return_sequences": 2}])
def test_what_a_request_held_is_free_when_it_has_ended(server: RunningServer, body: dict[str, Any]) -> None:
    """Not only when the garbage collector next comes by, which halts every stream."""
    wait_until(lambda: (not count(Run) and not count(Flight)) or bool(gc.collect()))
    gc.disable()
    try:
        stream(server, "/generate", prompt="Once", max_length=20, seed=11, **body)
        wait_until(lambda: not count(Run) and not count(Flight))
    finally:
        gc.enable()


def count(kind: type) -> int:
    return sum(isinstance(thing, kind) for thing in gc.get_objects())
