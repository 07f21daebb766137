"""What a model would do here: how many streams fit, and that measuring it counts every token once."""

from __future__ import annotations

import pytest
from fake_decoder import FakeDecoder
from served import fake_model

from pocketlm import capacity
from pocketlm.capacity import capacity as capacity_of
from pocketlm.config import EngineConfig
from pocketlm.errors import ModelLoadError
from pocketlm.kernels import kv_block_bytes
from pocketlm.kernels.inputs import BLOCK_SIZE
from pocketlm.loading import estimate
from pocketlm.machine_speed import MachineSpeed
from pocketlm.shapes import shape_header

SPEED = MachineSpeed(bytes_per_s=1e10, multiply_adds_per_s={"float32": 1e11, "int8": 1e11})
GIB = 2**30


def test_the_streams_that_fit_beside_the_weights() -> None:
    found = capacity_of("shape:gpt2", "int8", SPEED, 8 * GIB)
    one_context = kv_block_bytes(shape_header("shape:gpt2").spec, "int8") * 1024 // BLOCK_SIZE
    assert found.num_parameters == 124_439_808
    assert found.num_streams_that_fit == (8 * GIB - found.weights_bytes) // one_context
    assert found.predicted_tokens_per_s[16] > found.predicted_tokens_per_s[1] > 0


def test_a_model_that_cannot_be_loaded_has_room_for_none() -> None:
    need = estimate("shape:gpt2", EngineConfig(dtype="float32"), GIB).load_bytes
    assert capacity_of("shape:gpt2", "float32", SPEED, need).num_streams_that_fit > 0
    assert capacity_of("shape:gpt2", "float32", SPEED, need - 1).num_streams_that_fit == 0


def test_an_unknown_shape() -> None:
    with pytest.raises(ModelLoadError):
        capacity_of("shape:gpt7", "int8", SPEED, GIB)


def test_measuring_takes_what_is_drawn_after_every_stream_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            self.now += 1.0
            return self.now

    decoder = FakeDecoder()
    engine = fake_model(decoder, prefix_caching=False).engine
    monkeypatch.setattr(capacity, "time", Clock())
    monkeypatch.setattr(capacity, "NUM_PROMPT_TOKENS", 4)
    monkeypatch.setattr(capacity, "NUM_NEW_TOKENS", 6)
    monkeypatch.setattr(capacity, "MAX_TOKEN_ID", 3)
    # Each stream has its first token in the first step, then draws five more in one tick of this clock.
    assert capacity._decoding_speed(engine, 3) == 15.0
    assert not engine.has_work
