"""Deadlines: waiting, reading and generating together; what there is by then is the answer."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
from gate import Gate
from served import RunningServer, fake_model, is_idle, running_server, wait_until

ASK = {"prompt": "!", "max_tokens": 50, "seed": 1}


def ask(server: RunningServer, path: str = "/generate", **fields: Any) -> Any:
    return server.client.post(path, json={**ASK, **fields})


def test_the_text_so_far_is_the_answer() -> None:
    decoder = Gate()
    model = fake_model(decoder)
    with running_server(model) as server:
        decoder.let_through(4)
        answer = ask(server, timeout=0.4).json()
        assert answer["finish_reason"] == "timeout"
        assert answer["usage"]["completion_tokens"] == 4
        decoder.open()
        wait_until(lambda: is_idle(model))
        whole = ask(server).json()
        assert whole["finish_reason"] == "length"  # nothing cut short was kept
        assert not whole["cached"]
        assert whole["generated_text"].startswith(answer["generated_text"])
        assert server.sample("request_success_total", model_name="bundled", finished_reason="timeout") == 1


def test_a_stream_ends_with_what_it_has() -> None:
    decoder = Gate()
    with running_server(fake_model(decoder)) as server:
        decoder.let_through(3)
        response = ask(server, timeout=0.4, stream=True)
        *_, last, done = response.text.strip().split("\n\n")
        assert done == "data: [DONE]"
        assert json.loads(last[6:])["finish_reason"] == "timeout"
        decoder.open()


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_nothing_yet_is_a_408_that_is_not_to_be_retried(path: str, is_stream: bool) -> None:
    decoder = Gate()
    model = fake_model(decoder)
    with running_server(model) as server:
        response = ask(server, path, timeout=0.2, stream=is_stream)
        assert response.status_code == 408
        assert response.headers["x-should-retry"] == "false"
        error = response.json()["error"]
        assert "0.2 s" in (error if path == "/generate" else error["message"])
        decoder.open()
        wait_until(lambda: is_idle(model))


def test_waiting_counts() -> None:
    """One seat, taken: the request never reaches the engine, and its place in the queue is free again."""
    decoder = Gate()
    model = fake_model(decoder, max_num_seqs=1)
    with running_server(model) as server:
        engine = server.app.state.service.registry.entries()[0].engine
        threads = [threading.Thread(target=ask, args=(server,), kwargs={"seed": i}) for i in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: engine.num_jobs == 2)
        assert ask(server, seed=9, timeout=0.2).status_code == 408
        assert engine.num_jobs == 2
        decoder.open()
        for thread in threads:
            thread.join(timeout=20)


def test_the_smallest_bound_wins_and_the_server_has_one_of_its_own() -> None:
    decoder = Gate()
    with running_server(fake_model(decoder), request_timeout=0.3) as server:
        for fields, headers in [({}, {}), ({"timeout": 50}, {"X-Request-Timeout-Seconds": "0.3"})]:
            start = time.monotonic()
            response = server.client.post("/generate", json={**ASK, **fields}, headers=headers)
            assert response.status_code == 408
            assert 0.25 < time.monotonic() - start < 10
        decoder.open()


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", "1e99", ""])
def test_a_wrong_header_is_named(value: str) -> None:
    decoder = Gate()
    decoder.open()
    with running_server(fake_model(decoder)) as server:
        headers = {"X-Request-Timeout-Seconds": value}
        response = server.client.post("/generate", json=ASK, headers=headers)
        assert response.status_code == 400
        assert "X-Request-Timeout-Seconds must be a number above 0" in response.json()["error"]


@pytest.mark.parametrize("value", [0, -1, "soon", 1e9, True])
def test_a_wrong_field_is_named(value: object) -> None:
    decoder = Gate()
    decoder.open()
    with running_server(fake_model(decoder)) as server:
        response = ask(server, timeout=value)
        assert response.status_code == 400 and "timeout must be a number" in response.json()["error"]


def test_a_reader_with_more_time_gets_the_rest_of_a_shared_generation() -> None:
    decoder = Gate()
    with running_server(fake_model(decoder)) as server:
        answers: dict[float, Any] = {}

        def run(timeout: float) -> None:
            answers[timeout] = ask(server, timeout=timeout).json()

        decoder.let_through(4)
        threads = [threading.Thread(target=run, args=(timeout,)) for timeout in (0.5, 30)]
        for thread in threads:
            thread.start()
        threads[0].join(timeout=20)
        decoder.open()
        threads[1].join(timeout=20)
        assert answers[0.5]["finish_reason"] == "timeout"
        assert answers[30]["finish_reason"] == "length"
        assert answers[30]["generated_text"].startswith(answers[0.5]["generated_text"])
        assert len({len(batch.token_ids) for batch in decoder.batches}) == 1  # computed once
