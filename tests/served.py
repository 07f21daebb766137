"""Loaded models and running servers for tests."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
from fake_decoder import MAX_POSITIONS, FakeDecoder
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from pocketlm.config import EngineConfig, ServerConfig
from pocketlm.engine.engine import Engine
from pocketlm.loading import LoadedModel, load_model
from pocketlm.registry import Registry
from pocketlm.server.app import create_app
from pocketlm.server.run import Server, open_port, url
from pocketlm.text.chat_template import ChatTemplate


@functools.cache
def bundled_model() -> LoadedModel:
    """The bundled model, loaded once. Its engine serves one LLM, AsyncEngine or server at a time."""
    return load_model("bundled", EngineConfig(dtype="float32"))


def fake_model(decoder: FakeDecoder, **changes: Any) -> LoadedModel:
    """The bundled model's tokenizer around a fake decoder, whose ids are the first few of its vocabulary."""
    settings = {
        "num_blocks": 64,
        "max_model_len": MAX_POSITIONS,
        "max_num_seqs": 8,
        "max_batch_tokens": 64,
        "prefix_caching": True,
        "speculative_tokens": 0,
        "eos_token_ids": (),
    }
    engine = Engine(decoder, **{**settings, **changes})
    template = ChatTemplate("{{ messages[-1].content }}", {}, "the test")  # the plain one has words it lacks
    return replace(
        bundled_model(),
        engine=engine,
        max_model_len=engine.max_model_len,
        chat_template=template,
        known_answer=None,
    )


@dataclass
class RunningServer:
    url: str
    registry: Registry
    client: httpx.Client  # may be used from many threads
    app: FastAPI

    @property
    def model(self) -> LoadedModel:
        """The first one; it has to be loaded."""
        model = self.registry.entries()[0].model
        assert model is not None
        return model

    def sample(self, name: str, **labels: str) -> float:
        """One sample of /metrics; 0 if it is not there."""
        for family in text_string_to_metric_families(self.client.get("/metrics").text):
            for sample in family.samples:
                if sample.name == f"pocketlm:{name}" and labels.items() <= sample.labels.items():
                    return sample.value
        return 0.0


@contextmanager
def running_server(models: LoadedModel | Registry, **config: Any) -> Iterator[RunningServer]:
    """A real server on a free port, in a thread of this process."""
    server_config = ServerConfig(port=0, **config)
    registry = models
    if not isinstance(registry, Registry):
        registry = Registry.of(registry, max_queue=server_config.max_queue)
    sock = open_port(server_config)
    app = create_app(registry, server_config)
    server = Server(app, server_config)
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    address = url(sock, server_config)
    try:
        limits = httpx.Limits(max_connections=256)
        with httpx.Client(base_url=address, timeout=60, limits=limits) as client:
            wait_until(lambda: server.started or not thread.is_alive())
            yield RunningServer(address, registry, client, app)
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for what another thread or process brings about; fail if it never comes."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def is_idle(model: LoadedModel) -> bool:
    """No sequence is left and every KV block is free again."""
    stats = model.engine.stats()
    return stats.num_running == stats.num_waiting == 0 and stats.num_free_blocks == stats.num_blocks
