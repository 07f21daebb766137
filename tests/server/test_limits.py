"""What one client may take: a minute's requests and tokens, a place in the queue, the size of a request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_decoder import FakeDecoder
from gate import Gate
from served import RunningServer, fake_model, is_idle, running_server, wait_until

ALICE, BOB = "alice-secret-1", "bob-secret-2"
ASK = {"prompt": "!", "max_tokens": 4, "cache": False}
GENERATING = ("/generate", "/v1/completions", "/v1/chat/completions")


def ask(server: RunningServer, path: str = "/generate", **fields: Any) -> httpx.Response:
    body = {**ASK, **fields}
    if path == "/v1/chat/completions":
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    return server.client.post(path, json=body)


def message(response: httpx.Response) -> str:
    error = response.json()["error"]
    return str(error["message"] if isinstance(error, dict) else error)


class TestRates:
    """The counts are of a sliding window, estimated from two; just after the start they are exact."""

    @pytest.mark.parametrize("path", GENERATING)
    def test_requests_a_minute(self, path: str) -> None:
        with running_server(fake_model(FakeDecoder()), rate_limit_requests=2) as server:
            for left in (1, 0):
                response = ask(server, path)
                assert response.status_code == 200
                assert response.headers["x-ratelimit-limit-requests"] == "2"
                assert response.headers["x-ratelimit-remaining-requests"] == str(left)
                assert response.headers["x-ratelimit-reset-requests"].endswith("s")
            refused = ask(server, path)
            assert refused.status_code == 429
            assert "2 requests are allowed a minute, 0 of them are left" in message(refused)
            assert refused.headers["x-ratelimit-remaining-requests"] == "0"
            assert 1 <= int(refused.headers["retry-after"]) <= 120
            assert server.sample("admission_rejections_total", reason="rate_limit_exceeded") == 1
            assert server.client.get("/models").status_code == 200  # what generates nothing is not counted

    @pytest.mark.parametrize("path", GENERATING)
    def test_tokens_a_minute(self, path: str) -> None:
        with running_server(fake_model(FakeDecoder()), rate_limit_tokens=12) as server:
            for left in (7, 2):  # each may take 1 token to read and 4 to draw
                response = ask(server, path)
                assert response.status_code == 200
                assert response.headers["x-ratelimit-limit-tokens"] == "12"
                assert response.headers["x-ratelimit-remaining-tokens"] == str(left)
            refused = ask(server, path)
            assert refused.status_code == 429 and "12 tokens are allowed a minute" in message(refused)
            assert int(refused.headers["retry-after"]) >= 1
            never = ask(server, path, max_tokens=12)
            assert never.status_code == 429 and "more than the 12 that are allowed" in message(never)
            assert never.headers["x-should-retry"] == "false" and "retry-after" not in never.headers

    def test_an_answer_that_is_kept_costs_no_tokens(self) -> None:
        with running_server(fake_model(FakeDecoder()), rate_limit_tokens=5) as server:
            assert [ask(server, cache=True).headers["x-cache"] for _ in range(3)] == ["miss", "hit", "hit"]

    def test_a_stream_is_refused_with_a_status_of_its_own(self) -> None:
        with running_server(fake_model(FakeDecoder()), rate_limit_tokens=5) as server:
            assert ask(server, stream=True).status_code == 200
            assert ask(server, stream=True).status_code == 429


class InBackground(threading.Thread):
    """Requests of one owner, one after the other's end; `answered` is told of each."""

    def __init__(self, server: RunningServer, key: str, seed: int, answered: list[tuple[str, int]]) -> None:
        super().__init__()
        self._server, self._key, self._seed, self._answered = server, key, seed, answered
        self.start()

    def run(self) -> None:
        response = self._server.client.post(
            "/generate", json={**ASK, "seed": self._seed}, headers={"X-API-Key": self._key}
        )
        self._answered.append((self._key, response.status_code))


class TestQueue:
    def test_a_full_queue_says_when_to_come_back(self) -> None:
        """After as long as the work that waits takes at the speed measured."""
        decoder = Gate()
        model = fake_model(decoder, max_num_seqs=1)
        with running_server(model, max_queue=3) as server:
            decoder.let_through(4)
            assert ask(server).status_code == 200  # so that there is a speed
            engine = server.app.state.service.registry.entries()[0].engine
            answered: list[tuple[str, int]] = []
            threads = [InBackground(server, "", seed, answered) for seed in range(5)]  # two have seats
            wait_until(lambda: engine.num_jobs == 5)
            speed = engine.tokens_per_s
            for path in GENERATING:
                refused = ask(server, path, seed=99)
                assert refused.status_code == 429
                assert "3 requests are waiting already, at most 3 may" in message(refused)
                wait_s = max(1, 15 / speed)  # three times 1 token to read and 4 to draw
                assert abs(int(refused.headers["retry-after"]) - wait_s) <= 1
            assert server.sample("admission_rejections_total", reason="overloaded") == 3
            decoder.open()
            for thread in threads:
                thread.join(timeout=20)
            assert answered == [("", 200)] * 5
        assert is_idle(model)

    def test_a_flood_of_one_key_does_not_keep_another_waiting(self) -> None:
        decoder = Gate()
        model = fake_model(decoder, max_num_seqs=1)
        keys = (f"alice:{ALICE}", f"bob:{BOB}")
        with running_server(model, api_key=keys, max_queue=200) as server:
            engine = server.app.state.service.registry.entries()[0].engine
            answered: list[tuple[str, int]] = []
            threads = [InBackground(server, ALICE, seed, answered) for seed in range(100)]
            wait_until(lambda: engine.num_jobs == 100)
            threads.append(InBackground(server, BOB, 0, answered))
            wait_until(lambda: engine.num_jobs == 101)
            decoder.open()
            for thread in threads:
                thread.join(timeout=30)
            assert [key for key, _ in answered].index(BOB) < 8  # after those who had a seat already
            assert {status for _, status in answered} == {200}

    def test_of_a_full_queue_the_crowd_is_refused_and_not_the_newcomer(self) -> None:
        decoder = Gate()
        keys = (f"alice:{ALICE}", f"bob:{BOB}")
        with running_server(fake_model(decoder, max_num_seqs=1), api_key=keys, max_queue=4) as server:
            engine = server.app.state.service.registry.entries()[0].engine
            answered: list[tuple[str, int]] = []
            threads = [InBackground(server, ALICE, seed, answered) for seed in range(6)]
            wait_until(lambda: engine.num_jobs == 6)
            threads.append(InBackground(server, BOB, 0, answered))
            wait_until(lambda: answered == [(ALICE, 429)])
            decoder.open()
            for thread in threads:
                thread.join(timeout=20)
            assert sorted(answered) == sorted([(ALICE, 200)] * 5 + [(ALICE, 429), (BOB, 200)])


class TestSizes:
    @pytest.mark.parametrize("path", GENERATING)
    def test_the_longest_prompt(self, path: str) -> None:
        with running_server(fake_model(FakeDecoder()), max_prompt_tokens=3) as server:
            assert ask(server, path, prompt="!%!").status_code == 200
            refused = ask(server, path, prompt="!%!%")
            assert refused.status_code == 400
            assert "the prompt has 4 tokens; this server takes at most 3" in message(refused)
            if path != "/generate":
                assert refused.json()["error"]["code"] == "context_length_exceeded"

    @pytest.mark.parametrize("path", GENERATING)
    def test_the_most_answers(self, path: str) -> None:
        with running_server(fake_model(FakeDecoder()), max_n=2) as server:
            name = "num_return_sequences" if path == "/generate" else "n"
            assert ask(server, path, **{name: 2}).status_code == 200
            refused = ask(server, path, **{name: 3})
            assert refused.status_code == 400
            assert name in message(refused) and "2" in message(refused)

    @pytest.mark.parametrize("path", (*GENERATING, "/tokenize", "/detokenize"))
    def test_the_largest_body(self, path: str) -> None:
        with running_server(fake_model(FakeDecoder()), max_body=200) as server:
            refused = ask(server, path, prompt="!" * 200)
            assert refused.status_code == 413
            assert message(refused) == "the body must not exceed 200 bytes"
            assert ask(server).status_code == 200

    @pytest.mark.parametrize("path", GENERATING)
    def test_the_most_stop_strings(self, path: str) -> None:
        with running_server(fake_model(FakeDecoder())) as server:
            statuses = [ask(server, path, stop=["x"] * count).status_code for count in (1, 4, 1000)]
            assert statuses == [200, 200, 400]

    @pytest.mark.parametrize("path", (*GENERATING, "/tokenize", "/detokenize"))
    def test_a_body_must_arrive_in_time(self, path: str) -> None:
        with running_server(fake_model(FakeDecoder()), request_timeout=0.2) as server:

            def too_slow() -> Iterator[bytes]:
                yield b'{"prompt": '
                time.sleep(1)
                yield b'"!"}'

            headers = {"Content-Type": "application/json", "Content-Length": "15"}
            response = server.client.post(path, content=too_slow(), headers=headers)
            assert response.status_code == 408
            assert message(response) == "the body did not arrive within 0.2 s"
