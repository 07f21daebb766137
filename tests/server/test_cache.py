"""The response cache over HTTP: what is kept, what is shared, what a client can say about it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fake_decoder import FakeDecoder
from gate import Gate
from served import RunningServer, fake_model, is_idle, running_server, wait_until

ASK = {"prompt": "!", "max_tokens": 8}
SEEDED = {**ASK, "seed": 1}


@pytest.fixture
def server() -> Iterator[RunningServer]:
    with running_server(fake_model(FakeDecoder())) as server:
        yield server


def ask(
    server: RunningServer, body: dict[str, Any], path: str = "/generate", **headers: str
) -> tuple[str, Any]:
    """What X-Cache says, and the answer."""
    response = server.client.post(
        path, json=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    assert response.status_code == 200, response.text
    return response.headers["x-cache"], response.json()


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    changing = ("cached", "inference_time_seconds", "id", "created", "timing")
    return {k: v for k, v in first.items() if k not in changing} == {
        k: v for k, v in second.items() if k not in changing
    }


def test_generate_keeps_everything_as_the_exercise_asks(server: RunningServer) -> None:
    state, first = ask(server, ASK)
    assert state == "miss" and first["cached"] is False
    state, again = ask(server, ASK)
    assert state == "hit" and again["cached"] is True
    assert same(first, again)
    state, other = ask(server, {**ASK, "temperature": 0.9})
    assert state == "miss" and not same(first, other)


def test_what_is_the_same_request_is_decided_by_the_parameters_in_effect(server: RunningServer) -> None:
    ask(server, {**ASK, "seed": 1})
    for body in ({**ASK, "seed": 1, "temperature": 0.7}, {**ASK, "seed": 1, "top_k": 50, "user": "u"}):
        assert ask(server, body)[0] == "hit"
    for change in (
        {"seed": 2},
        {"max_tokens": 7},
        {"stop": "x"},
        {"num_return_sequences": 2},
        {"prompt": "#"},
    ):
        assert ask(server, {**SEEDED, **change})[0] == "miss"


def test_v1_keeps_only_what_is_deterministic(server: RunningServer) -> None:
    path = "/v1/completions"
    for change, kept in [
        ({}, False),
        ({"seed": 3}, True),
        ({"temperature": 0}, True),
        ({"cache": True}, True),
    ]:
        states = [ask(server, {**ASK, **change}, path)[0] for _ in range(2)]
        assert states == (["miss", "hit"] if kept else ["bypass", "bypass"])


def test_v1_keeps_all_if_configured() -> None:
    with running_server(fake_model(FakeDecoder()), cache_sampled=True) as server:
        answers = [ask(server, ASK, "/v1/completions") for _ in range(2)]
        assert [state for state, _ in answers] == ["miss", "hit"]
        assert same(answers[0][1], answers[1][1])


def test_a_client_can_go_without(server: RunningServer) -> None:
    ask(server, SEEDED)
    assert ask(server, {**SEEDED, "cache": False})[0] == "bypass"
    assert ask(server, SEEDED, Cache_Control="no-store")[0] == "bypass"
    assert ask(server, SEEDED, Cache_Control="max-age=0, No-Cache")[0] == "bypass"
    assert ask(server, SEEDED)[0] == "hit"
    fresh = {**SEEDED, "seed": 2}
    assert ask(server, fresh, Cache_Control="no-store")[0] == "bypass"
    assert ask(server, fresh, Cache_Control="no-cache")[0] == "bypass"  # which may be kept for others
    assert ask(server, fresh)[0] == "hit"


def test_no_cache_on_the_command_line() -> None:
    with running_server(fake_model(FakeDecoder()), cache=False) as server:
        assert [ask(server, SEEDED)[0] for _ in range(2)] == ["bypass", "bypass"]
        assert ask(server, {**SEEDED, "cache": True})[0] == "bypass"


def test_an_answer_expires() -> None:
    with running_server(fake_model(FakeDecoder()), cache_ttl=0.2) as server:
        ask(server, ASK)
        wait_until(lambda: ask(server, ASK)[0] == "miss")


def test_clear_and_stats(server: RunningServer) -> None:
    ask(server, ASK)
    ask(server, ASK)
    stats = server.client.get("/cache/stats").json()
    assert (stats["enabled"], stats["entries"], stats["hits"], stats["misses"]) == (True, 1, 1, 1)
    assert stats["bytes"] > 0 and stats["ttl_seconds"] == 300
    assert server.client.post("/cache/clear").json() == {"status": "cleared", "entries": 1}
    assert ask(server, ASK)[0] == "miss"


def test_a_kept_answer_can_be_streamed_and_a_streamed_one_is_kept(server: RunningServer) -> None:
    streamed = server.client.post("/generate", json={**ASK, "stream": True})
    assert streamed.headers["x-cache"] == "miss"
    state, whole = ask(server, ASK)
    assert state == "hit"
    again = server.client.post("/generate", json={**ASK, "stream": True})
    assert again.headers["x-cache"] == "hit"
    for response in (streamed, again):
        last = json.loads(response.text.strip().split("\n\n")[-2][6:])
        assert same(last, whole)


def test_every_form_of_answer_survives_the_cache(server: RunningServer) -> None:
    body = {**ASK, "n": 2, "seed": 4, "logprobs": 3, "echo": True}
    (miss, first), (hit, again) = ask(server, body, "/v1/completions"), ask(server, body, "/v1/completions")
    assert (miss, hit) == ("miss", "hit")
    assert same(first, again)
    chat = {"messages": [{"role": "user", "content": "!"}], "seed": 1, "max_tokens": 5, "logprobs": True}
    (miss, first), (hit, again) = (ask(server, chat, "/v1/chat/completions") for _ in range(2))
    assert (miss, hit) == ("miss", "hit")
    assert same(first, again)


def test_of_several_prompts_each_is_kept(server: RunningServer) -> None:
    ask(server, {**SEEDED, "prompt": "!"}, "/v1/completions")
    state, both = ask(server, {**SEEDED, "prompt": ["!", "#"]}, "/v1/completions")
    assert state == "miss" and both["cached"] is False
    state, again = ask(server, {**SEEDED, "prompt": ["#", "!"]}, "/v1/completions")
    assert state == "hit"
    assert [c["text"] for c in again["choices"]] == [c["text"] for c in both["choices"]][::-1]


def test_equal_requests_under_way_run_once() -> None:
    decoder = Gate()
    model = fake_model(decoder)
    with running_server(model) as server:
        answers: list[Any] = []
        threads = [threading.Thread(target=lambda: answers.append(ask(server, ASK)[1])) for _ in range(8)]
        for thread in threads:
            thread.start()
        engine = server.app.state.service.registry.entries()[0].engine
        wait_until(lambda: server.sample("response_cache_misses_total") == 8)
        assert engine.num_jobs == 1
        decoder.open()
        for thread in threads:
            thread.join(timeout=20)
        assert all(same(answers[0], other) for other in answers) and len(answers) == 8
        assert model.engine.stats().num_output_tokens == 8
    assert is_idle(model)


def test_a_shared_generation_goes_on_when_the_first_client_leaves() -> None:
    decoder = Gate()
    with running_server(fake_model(decoder)) as server:
        answers: list[Any] = []
        first = server.client.stream("POST", "/generate", json={**ASK, "stream": True})
        decoder.let_through(2)
        response = first.__enter__()
        next(response.iter_raw())
        other = threading.Thread(target=lambda: answers.append(ask(server, ASK)[1]))
        other.start()
        wait_until(lambda: server.sample("response_cache_misses_total") == 2)
        first.__exit__(None, None, None)
        wait_until(lambda: server.app.state.service.num_streams == 0)
        decoder.open()
        other.join(timeout=20)
        assert answers[0]["finish_reason"] == "length" and answers[0]["usage"]["completion_tokens"] == 8


class TestIdempotencyKey:
    def test_a_retry_gets_the_first_answer(self, server: RunningServer) -> None:
        path = "/v1/completions"
        first = ask(server, ASK, path, Idempotency_Key="a")[1]
        assert same(ask(server, ASK, path, Idempotency_Key="a")[1], first)
        assert not same(ask(server, ASK, path, Idempotency_Key="b")[1], first)
        assert not same(ask(server, ASK, path)[1], first)

    def test_the_same_key_for_another_request_is_refused(self, server: RunningServer) -> None:
        ask(server, ASK, Idempotency_Key="a")
        response = server.client.post(
            "/generate", json={**ASK, "prompt": "#"}, headers={"Idempotency-Key": "a"}
        )
        assert response.status_code == 422 and "Idempotency-Key" in response.json()["error"]

    def test_a_request_with_one_more_prompt_is_another_one(self, server: RunningServer) -> None:
        path, headers = "/v1/completions", {"Idempotency-Key": "a"}
        ask(server, {**ASK, "prompt": ["!", "#"]}, path, Idempotency_Key="a")
        body = {**ASK, "prompt": ["!", "#", "$"]}
        assert server.client.post(path, json=body, headers=headers).status_code == 422

    def test_also_while_the_first_one_is_under_way(self) -> None:
        decoder = Gate()
        with running_server(fake_model(decoder)) as server:
            answers: list[Any] = []

            def run() -> None:
                answers.append(ask(server, ASK, "/v1/completions", Idempotency_Key="a")[1])

            threads = [threading.Thread(target=run) for _ in range(2)]
            for thread in threads:
                thread.start()
            engine = server.app.state.service.registry.entries()[0].engine
            wait_until(lambda: engine.num_jobs == 1)
            response = server.client.post(
                "/v1/completions", json={**ASK, "prompt": "#"}, headers={"Idempotency-Key": "a"}
            )
            assert response.status_code == 422
            decoder.open()
            for thread in threads:
                thread.join(timeout=20)
            assert same(answers[0], answers[1])

    @pytest.mark.parametrize("key", ["", "a b", "x" * 256])
    def test_a_bad_key_is_refused(self, server: RunningServer, key: str) -> None:
        response = server.client.post("/generate", json=ASK, headers={"Idempotency-Key": key})
        assert response.status_code == 400 and "Idempotency-Key" in response.json()["error"]

    def test_it_works_without_the_response_cache(self) -> None:
        with running_server(fake_model(FakeDecoder()), cache=False) as server:
            first, again = (ask(server, ASK, Idempotency_Key="a")[1] for _ in range(2))
            assert same(first, again)
