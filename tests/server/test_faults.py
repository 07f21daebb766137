"""What breaks while the server runs: Redis, files, weights, the server's own end. Who asks notices little."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from checkpoints import DEFAULTS, draw_weights, write_checkpoint, write_weights
from gate import Gate
from lazy_models import LazyModels
from redis_server import needs_redis_server, running_redis
from served import RunningServer, bundled_model, fake_model, is_idle, running_server, wait_until

from pocketlm.config import engine_config
from pocketlm.registry import LOAD_COOLDOWN_S, ModelState, Registry

ASK = {"prompt": "Kubernetes is a", "max_tokens": 8}
SMALL = engine_config(num_threads=1, max_num_seqs=4)


def ask(server: RunningServer, **fields: Any) -> httpx.Response:
    return server.client.post("/generate", json={**ASK, **fields})


@needs_redis_server
def test_redis_killed_and_started_again() -> None:
    with running_redis() as redis:
        shared = {"cache_url": redis.url, "rate_limit_url": redis.url, "rate_limit_requests": 100_000}
        with running_server(bundled_model(), **shared) as server:
            statuses: list[int] = []
            is_over = threading.Event()

            def ask_on_and_on() -> None:
                seed = 1
                while not is_over.is_set():
                    statuses.append(ask(server, seed=seed).status_code)
                    seed += 1

            others = threading.Thread(target=ask_on_and_on)
            others.start()
            assert [ask(server, seed=0).headers["x-cache"] for _ in range(2)] == ["miss", "hit"]
            redis.kill()
            for _ in range(3):
                response = ask(server, seed=0)
                assert (response.status_code, response.headers["x-cache"]) == (200, "miss")
                assert response.headers["x-ratelimit-limit-requests"] == "100000"
            assert server.sample("response_cache_errors_total") > 0
            assert server.sample("rate_limit_errors_total") > 0
            redis.start()
            wait_until(lambda: ask(server, seed=0).headers["x-cache"] == "hit", timeout_s=20)
            is_over.set()
            others.join()
            assert len(statuses) > 10 and set(statuses) == {200}
    assert is_idle(bundled_model())


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def small_models(tmp_path: Path, clock: Clock) -> tuple[Registry, str]:
    """The bundled model, and one on disk that is loaded when asked for."""
    folder = write_checkpoint(tmp_path / "small", seed=1)
    registry = Registry(["bundled", str(folder)], aliases={"small": str(folder)}, config=SMALL, clock=clock)
    registry.preload()
    return registry, str(folder)


def test_a_model_whose_file_is_gone_when_it_is_first_asked_for(tmp_path: Path) -> None:
    clock = Clock()
    registry, name = small_models(tmp_path, clock)
    file, aside = tmp_path / "small" / "model.safetensors", tmp_path / "aside"
    file.rename(aside)
    with running_server(registry) as server:
        for _ in range(2):  # the second time from memory
            response = ask(server, model="small")
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) == LOAD_COOLDOWN_S
            error = response.json()["error"]
            assert f"the model {name} could not be loaded" in error and "model.safetensors" in error
            assert "Traceback" not in error and error.count("/") == name.count("/") * error.count(name)
        assert ask(server).status_code == 200
        assert server.client.get("/health").status_code == 200
        assert server.client.get("/health/ready").status_code == 200
        good, bad = server.client.get("/models").json()["models"]
        assert (good["state"], bad["state"]) == ("ready", "failed")
        assert bad["error"] == error
        aside.rename(file)
        assert ask(server, model="small").status_code == 503
        clock.now += LOAD_COOLDOWN_S
        assert ask(server, model="small").status_code == 200
        assert server.client.get("/models").json()["models"][1]["state"] == "ready"


def test_a_file_that_goes_after_the_load_is_not_missed(tmp_path: Path) -> None:
    registry, _ = small_models(tmp_path, Clock())
    with running_server(registry) as server:
        before = ask(server, model="small", seed=1, cache=False).json()
        for file in (tmp_path / "small").iterdir():
            file.unlink()
        after = ask(server, model="small", seed=1, cache=False).json()
        assert after["generated_text"] == before["generated_text"]


def test_nan_in_the_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_checkpoint(tmp_path / "broken", seed=1)
    weights = draw_weights(DEFAULTS, seed=1, tied=True)
    weights["h.1.mlp.c_fc.weight"][3, 5] = np.nan
    write_weights(folder, weights, dtype="F32", shards=1)
    registry = Registry([str(folder)], config=SMALL)
    registry.preload()
    with running_server(registry) as server:
        response = ask(server)
        assert response.status_code == 500
        assert "not finite" in response.json()["error"]
        stream = ask(server, stream=True)
        assert stream.status_code == 500 and "not finite" in stream.json()["error"]
        assert server.sample("corrupted_requests_total", model_name=str(folder)) == 2
        for _ in range(3):  # the background check comes to the same
            ready = server.client.get("/health/ready")
            assert ready.status_code == 503 and "not finite" in ready.json()["error"]
        assert server.client.get("/health/live").status_code == 200
        wait_until(lambda: "the known-answer check failed" in caplog.text)


def drain(server: RunningServer) -> None:
    """What SIGTERM does to the service."""
    service = server.app.state.service
    engine = service.registry.entries()[0].engine
    engine._loop.call_soon_threadsafe(service.drain)


class InBackground(threading.Thread):
    """One request."""

    def __init__(self, server: RunningServer, **fields: Any) -> None:
        super().__init__()
        self._server, self._fields = server, fields
        self.start()

    def run(self) -> None:
        self._response = ask(self._server, **self._fields)

    def response(self) -> httpx.Response:
        self.join(timeout=20)
        return self._response


def test_whose_turn_does_not_come_before_the_server_stops_is_to_ask_again() -> None:
    decoder = Gate()
    model = fake_model(decoder, max_num_seqs=1)
    with running_server(model, drain_timeout=0.5) as server:
        engine = server.app.state.service.registry.entries()[0].engine
        decoder.let_through(3)
        first = InBackground(server, prompt="!", max_tokens=50, seed=1)
        wait_until(lambda: model.engine.stats().num_output_tokens == 3)
        others = [InBackground(server, prompt="!", max_tokens=5, seed=2, stream=s) for s in (True, False)]
        wait_until(lambda: engine.num_jobs == 2)  # the others ask for the same
        drain(server)
        assert first.response().json()["finish_reason"] == "timeout"
        for other in others:
            assert other.response().status_code == 503
            assert "the server is shutting down" in other.response().json()["error"]
            assert other.response().headers["retry-after"] == "1"
            assert "x-should-retry" not in other.response().headers
        decoder.open()


def test_who_waits_for_a_model_when_the_server_stops_is_to_ask_again() -> None:
    gate = threading.Event()
    registry = LazyModels(before_load=lambda: gate.wait(timeout=20)).registry("first", "other")
    with running_server(registry) as server:
        waiting = InBackground(server, prompt="!", model="other")
        wait_until(lambda: registry.entries()[1].state is ModelState.LOADING)
        drain(server)
        for response in (waiting.response(), ask(server, prompt="!", model="other")):
            assert response.status_code == 503
            assert response.json() == {"error": "the server is shutting down"}
        assert ask(server, prompt="!").status_code == 200
    gate.set()
