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
import uvicorn
from fake_decoder import MAX_POSITIONS, FakeDecoder

from pocketlm.config import EngineConfig, ServerConfig
from pocketlm.engine.engine import Engine
from pocketlm.loading import LoadedModel, load_model
from pocketlm.server.app import create_app
from pocketlm.server.run import open_port, url


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
        "eos_token_ids": (),
    }
    return replace(bundled_model(), engine=Engine(decoder, **{**settings, **changes}))


@dataclass
class RunningServer:
    url: str
    model: LoadedModel
    client: httpx.Client  # may be used from many threads


@contextmanager
def running_server(model: LoadedModel, **config: Any) -> Iterator[RunningServer]:
    """A real server on a free port, in a thread of this process."""
    server_config = ServerConfig(port=0, **config)
    sock = open_port(server_config)
    server = uvicorn.Server(uvicorn.Config(create_app(model, server_config), log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, args=([sock],))
    thread.start()
    try:
        with httpx.Client(base_url=url(sock), timeout=60, limits=httpx.Limits(max_connections=64)) as client:
            yield RunningServer(url(sock), model, client)
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
