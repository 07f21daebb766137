"""MachineSpeed: how fast this machine reads memory and multiplies, measured in about half a second."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pocketlm import kernels
from pocketlm.kernels import BLOCK_SIZE, DecoderSpec, ForwardInputs
from pocketlm.kernels.inputs import Float32Array

NUM_LAYERS_READ = 4  # 108 MiB in float32: more than most caches hold, and about what gpt2 takes in int8
NUM_ROUNDS = 3  # the best counts: what else the machine did only ever makes it slower
NUM_STREAMS = 64  # that take one token each, as when a server is busy

# One layer as wide as gpt2's, with next to no vocabulary.
LAYER = DecoderSpec(
    vocab_size=16,
    hidden_size=768,
    num_layers=1,
    num_heads=12,
    num_kv_heads=12,
    head_dim=64,
    intermediate_size=3072,
    max_positions=BLOCK_SIZE,
    norm="layer",
    norm_epsilon=1e-5,
    activation="gelu_tanh",
    attention_scales=(0.125,),
)


@dataclass(frozen=True)
class MachineSpeed:
    bytes_per_s: float  # of weights read by all threads together
    multiply_adds_per_s: dict[str, float]  # by dtype


def measure(dtypes: Sequence[str], num_threads: int) -> MachineSpeed:
    return MachineSpeed(
        bytes_per_s=read_speed(num_threads),
        multiply_adds_per_s={dtype: multiply_speed(dtype, num_threads) for dtype in dtypes},
    )


def read_speed(num_threads: int) -> float:
    """Bytes per second of float32 weights, as the kernels read them for one stream."""
    layers = replace(
        LAYER, num_layers=NUM_LAYERS_READ, attention_scales=LAYER.attention_scales * NUM_LAYERS_READ
    )
    return 4 * matrix_elements(layers) / _step_s(layers, "float32", num_threads, num_streams=1)


def multiply_speed(dtype: str, num_threads: int) -> float:
    """Multiply-adds per second of a whole layer, by the kernels that the engine would use."""
    return NUM_STREAMS * matrix_elements(LAYER) / _step_s(LAYER, dtype, num_threads, NUM_STREAMS)


def matrix_elements(spec: DecoderSpec) -> int:
    """The weights that each token is multiplied with; the embedding is only looked up."""
    shapes = spec.matrix_shapes()
    return sum(rows * columns for name, (rows, columns) in shapes.items() if name != "token_embedding")


def _step_s(spec: DecoderSpec, dtype: str, num_threads: int, num_streams: int) -> float:
    """Seconds of a step in which each stream computes one token."""
    decoder = kernels.create_decoder(spec, _weights(spec), dtype=dtype, num_threads=num_threads)
    kv_cache = decoder.new_kv_cache(num_streams)
    streams = np.arange(num_streams, dtype=np.int32)
    inputs = ForwardInputs(
        token_ids=streams % spec.vocab_size,
        positions=np.zeros(num_streams, np.int32),
        slot_mapping=streams * BLOCK_SIZE,
        block_tables=streams[:, None],  # [S, 1]
        context_lens=np.ones(num_streams, np.int32),
        query_starts=np.arange(num_streams + 1, dtype=np.int32),
        logit_rows=streams,
    )
    seconds = []
    for _ in range(NUM_ROUNDS):
        start = time.perf_counter()
        decoder.forward(inputs, kv_cache)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _weights(spec: DecoderSpec) -> dict[str, Float32Array]:
    shapes = spec.matrix_shapes()
    shapes["position_embedding"] = spec.max_positions, spec.hidden_size
    weights: dict[str, Float32Array] = {
        name: np.full(shape, 0.01, np.float32) for name, shape in shapes.items()
    }
    norms = [f"layers.{i}.{norm}" for i in range(spec.num_layers) for norm in ("attention_norm", "mlp_norm")]
    for norm in (*norms, "final_norm"):
        weights[f"{norm}.weight"] = np.ones(spec.hidden_size, np.float32)
    return weights
