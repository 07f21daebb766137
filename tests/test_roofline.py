"""The roofline is arithmetic: checked against figures worked out by hand."""

from __future__ import annotations

import pytest

from pocketlm.kernels import kv_block_bytes
from pocketlm.kernels.inputs import BLOCK_SIZE
from pocketlm.machine_speed import MachineSpeed, matrix_elements
from pocketlm.roofline import CONTEXT, predict
from pocketlm.shapes import shape_header

GPT2 = shape_header("shape:gpt2").spec
WEIGHTS = 12 * 12 * 768 * 768 + 50257 * 768  # twelve layers of 12 E^2, and the head


def test_the_weights_that_a_token_meets() -> None:
    assert matrix_elements(GPT2) == WEIGHTS


def test_one_stream_is_bound_by_reading_the_weights() -> None:
    speed = MachineSpeed(bytes_per_s=1e10, multiply_adds_per_s={"float32": 1e12, "int8": 1e12})
    kv_bytes = CONTEXT * kv_block_bytes(GPT2, "float32") / BLOCK_SIZE
    found = predict(GPT2, "float32", 1, speed)
    assert found.bound == "memory"
    assert found.tokens_per_s == pytest.approx(1e10 / (4 * WEIGHTS + kv_bytes), rel=1e-6)
    assert predict(GPT2, "int8", 1, speed).tokens_per_s > 3.5 * found.tokens_per_s


def test_many_streams_are_bound_by_multiplying() -> None:
    speed = MachineSpeed(bytes_per_s=1e12, multiply_adds_per_s={"int8": 1e11})
    found = predict(GPT2, "int8", 64, speed)
    assert found.bound == "compute"
    assert found.tokens_per_s == pytest.approx(1e11 / (WEIGHTS + 2 * 12 * 768 * CONTEXT), rel=1e-6)


def test_more_streams_share_the_reading() -> None:
    speed = MachineSpeed(bytes_per_s=1e10, multiply_adds_per_s={"int8": 1e14})
    speeds = [predict(GPT2, "int8", n, speed).tokens_per_s for n in (1, 2, 4)]
    assert speeds[0] < speeds[1] < speeds[2] < 4 * speeds[0]
