"""Roofline: what a machine's speed lets a model do at best.

A step reads every weight and every key and value once, and multiplies each token with every weight. It
takes at least as long as the slower of the two: with one stream the reading, with many the multiplying.
Small models stay below it, because what a step does besides is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

from pocketlm.kernels import DecoderSpec, kv_block_bytes
from pocketlm.kernels.inputs import BLOCK_SIZE
from pocketlm.machine_speed import MachineSpeed, matrix_elements

CONTEXT = 64  # tokens that each stream looks back on, on average
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 0.5625}  # with their scales


@dataclass(frozen=True)
class Prediction:
    tokens_per_s: float
    bound: str  # memory or compute, whichever is slower


def predict(spec: DecoderSpec, dtype: str, num_streams: int, speed: MachineSpeed) -> Prediction:
    """The new tokens per second of so many streams together."""
    num_bytes = sum(
        rows * columns * WEIGHT_BYTES[dtype]
        for name, (rows, columns) in spec.matrix_shapes().items()
        if name != "token_embedding"
    )
    num_bytes += num_streams * CONTEXT * kv_block_bytes(spec, dtype) // BLOCK_SIZE
    reading_s = num_bytes / speed.bytes_per_s
    multiplying_s = num_streams * _multiply_adds(spec) / speed.multiply_adds_per_s[dtype]
    step_s = max(reading_s, multiplying_s)
    return Prediction(num_streams / step_s, "memory" if reading_s >= multiplying_s else "compute")


def _multiply_adds(spec: DecoderSpec) -> int:
    """Of one token: with every weight, and with the keys and values of its context."""
    attention = 2 * spec.num_layers * spec.num_heads * spec.head_dim * CONTEXT
    return matrix_elements(spec) + attention
