"""What the three health routes say in each state of the server."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
from fake_decoder import FakeDecoder, expected_output
from gate import Gate
from lazy_models import LazyModels
from served import RunningServer, bundled_model, fake_model, is_idle, running_server, wait_until

from pocketlm.known_answer import KnownAnswer
from pocketlm.loading import LoadedModel
from pocketlm.sampling import SamplingParams
from pocketlm.server import checks

ASK = {"prompt": "!", "max_tokens": 20}
PROMPT = [1, 2, 3]
PARAMS = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


def checked_model(decoder: FakeDecoder) -> LoadedModel:
    """A fake model that knows what it should answer."""
    known = KnownAnswer(PROMPT, PARAMS, expected_output(PROMPT, PARAMS))
    return replace(fake_model(decoder), known_answer=known)


def statuses(server: RunningServer) -> tuple[int, int, int]:
    """Of /health, /health/live and /health/ready."""
    health, live, ready = (
        server.client.get(path).status_code for path in ("/health", "/health/live", "/health/ready")
    )
    return health, live, ready


def ready(server: RunningServer) -> tuple[int, Any]:
    response = server.client.get("/health/ready")
    return response.status_code, response.json()


def test_a_server_in_order() -> None:
    decoder = Gate()
    with running_server(checked_model(decoder)) as server:
        assert server.client.get("/health/live").json() == {"status": "alive"}
        assert ready(server) == (200, {"status": "ready"})
        threads = [
            threading.Thread(
                target=server.client.post, args=("/generate",), kwargs={"json": {**ASK, "seed": i}}
            )
            for i in range(3)
        ]
        for thread in threads:
            thread.start()
        engine = server.app.state.service.registry.entries()[0].engine
        wait_until(lambda: engine.num_jobs == 4)  # with the check
        decoder.let_through(2)
        wait_until(lambda: engine.stats().num_running == 4)
        health = server.client.get("/health").json()
        assert (health["status"], health["model"]) == ("healthy", "bundled")
        state = health["engines"]["bundled"]
        assert (state["dtype"], state["running"], state["waiting"]) == ("float32", 4, 0)
        assert 0 < state["kv_cache_usage"] < 1 and state["tokens_per_second"] > 0
        decoder.open()
        for thread in threads:
            thread.join(timeout=20)
        assert ready(server) == (200, {"status": "ready"})


def test_a_server_that_shuts_down_wants_no_more_requests_and_lives() -> None:
    with running_server(fake_model(FakeDecoder())) as server:
        service = server.app.state.service
        service.drain_deadline = 1e9
        assert statuses(server) == (200, 200, 503)
        assert ready(server)[1] == {"status": "not ready", "error": "the server is shutting down"}


def test_a_dead_engine_is_to_be_restarted() -> None:
    with running_server(fake_model(FakeDecoder(errors=[RuntimeError("secret")] * 2))) as server:
        statuses_of_posts = [server.client.post("/generate", json=ASK).status_code for _ in range(2)]
        assert statuses_of_posts == [500, 503]
        assert statuses(server) == (503, 503, 503)
        for path in ("/health", "/health/live", "/health/ready"):
            error = server.client.get(path).json()["error"]
            assert "bundled: the engine failed" in error and "restart" in error and "secret" not in error


class Wrong(FakeDecoder):
    """After `break_down` it computes something else than it should."""

    is_broken = False

    def forward(self, inputs: Any, kv_cache: Any) -> Any:
        logits = super().forward(inputs, kv_cache)
        return -logits if self.is_broken else logits


def test_a_model_that_goes_wrong_is_found_by_a_later_probe(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checks, "CHECK_EVERY_S", 0.05)
    decoder = Wrong()
    model = checked_model(decoder)
    with running_server(model) as server:
        assert ready(server)[0] == 200
        decoder.is_broken = True
        wait_until(lambda: ready(server)[0] == 503)
        assert "bundled: the known-answer check failed: to [1, 2, 3]" in ready(server)[1]["error"]
        assert statuses(server)[:2] == (200, 200)
        decoder.is_broken = False
        wait_until(lambda: ready(server)[0] == 200)
    assert is_idle(model)
    assert "the known-answer check failed" in caplog.text


def test_probes_do_not_ask_the_model_each_time() -> None:
    model = checked_model(FakeDecoder())
    with running_server(model) as server:
        for _ in range(20):
            assert ready(server)[0] == 200
        wait_until(lambda: is_idle(model))
        assert model.engine.stats().num_output_tokens == PARAMS.max_tokens


def test_a_request_that_fails_has_the_model_checked_at_once() -> None:
    decoder = Wrong()
    model = checked_model(decoder)
    with running_server(model) as server:
        ready(server)
        wait_until(lambda: model.engine.stats().num_output_tokens == PARAMS.max_tokens and is_idle(model))
        decoder.is_broken, decoder.errors = True, [RuntimeError("secret")]
        assert server.client.post("/generate", json=ASK).status_code == 500
        assert ready(server)[0] == 200  # what is known so far
        wait_until(lambda: ready(server)[0] == 503)


def test_a_check_under_way_does_not_hold_the_server_up() -> None:
    decoder = Gate()
    with running_server(checked_model(decoder)) as server:
        ready(server)
        wait_until(decoder.entered.is_set)
        assert statuses(server) == (200, 200, 200)
        decoder.open()


def test_health_answers_while_a_model_loads() -> None:
    gate = threading.Event()
    registry = LazyModels(before_load=lambda: gate.wait(timeout=20)).registry("first", "other")
    with running_server(registry) as server:
        body = {**ASK, "model": "other"}
        thread = threading.Thread(target=server.client.post, args=("/generate",), kwargs={"json": body})
        thread.start()
        states = lambda: [model["state"] for model in server.client.get("/models").json()["models"]]  # noqa: E731
        wait_until(lambda: states() == ["ready", "loading"])
        assert statuses(server) == (200, 200, 200)
        assert server.client.get("/health").json()["engines"].keys() == {"first"}
        assert server.client.post("/generate", json=ASK).status_code == 200
        gate.set()
        thread.join(timeout=20)
        assert states() == ["ready", "ready"]


def test_the_bundled_model_passes_its_check() -> None:
    with running_server(bundled_model()) as server:
        ready(server)
        wait_until(lambda: is_idle(bundled_model()))
        assert ready(server) == (200, {"status": "ready"})
