"""The compiled core behind the interface of reference.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pocketlm.kernels._core as _core
from pocketlm.kernels.inputs import (
    BLOCK_SIZE,
    Float32Array,
    ForwardInputs,
    Int32Array,
    LogprobOutputs,
    SamplingInputs,
    SamplingOutputs,
)
from pocketlm.kernels.packed_weights import PackedWeights
from pocketlm.kernels.spec import TABLES, DecoderSpec, matrix_dtype

assert _core.BLOCK_SIZE == BLOCK_SIZE

padded_head_dim = _core.padded_head_dim


def available_isas() -> tuple[str, ...]:
    """The instruction sets that this build holds and this processor runs, best first."""
    return tuple(_core.available_isas())


def pack(
    spec: DecoderSpec, weights: Mapping[str, NDArray[Any]], *, dtype: str, num_threads: int
) -> PackedWeights:
    """Pack a dict of weights. ValueError if one is of the wrong shape or dtype."""
    matrices = spec.matrix_shapes()
    arrays: dict[str, NDArray[Any]] = {}
    for name, weight in weights.items():
        if weight.shape != spec.weight_shape(name):
            expected = list(spec.weight_shape(name))
            raise ValueError(f"weight {name} has shape {list(weight.shape)}, expected {expected}")
        slot, _, kind = name.rpartition(".")
        if name in TABLES:
            arrays[name] = weight
        elif name in matrices:
            parts = _core.pack_matrix(name, weight, matrix_dtype(name, dtype), num_threads)
            arrays.update(zip((name, f"{slot}.scales"), parts, strict=False))
            num_columns = -(-weight.shape[1] // _core.PANEL_COLUMNS) * _core.PANEL_COLUMNS
            bias = np.zeros(num_columns, np.float32)
            bias[: weight.shape[1]] = weights.get(f"{slot}.bias", 0)
            arrays[f"{slot}.bias"] = bias
        elif kind == "weight" or f"{slot}.weight" not in matrices:  # a norm's
            arrays[name] = np.array(weight, np.float32)
    return PackedWeights(dtype, arrays)


class Decoder:
    def __init__(self, spec: DecoderSpec, weights: PackedWeights, *, num_threads: int, isa: str) -> None:
        self.spec, self.dtype, self.num_threads = spec, weights.dtype, num_threads
        self.weights, self.weights_bytes = weights, weights.num_bytes
        self._core = _core.Decoder(spec, dict(weights.arrays), weights.dtype, num_threads, isa)

    def new_kv_cache(self, num_blocks: int) -> _core.KVCache:
        return self._core.new_kv_cache(num_blocks)

    def forward(self, inputs: ForwardInputs, kv_cache: _core.KVCache) -> Float32Array:
        """Logits of the rows asked for [R, V]; releases the GIL. A bad index is a ValueError."""
        logits = np.empty((len(inputs.logit_rows), self.spec.vocab_size), np.float32)
        self._core.forward(*inputs, kv_cache, logits)
        return logits

    def sample(self, logits: Float32Array, inputs: SamplingInputs) -> SamplingOutputs:
        """One token for each row of logits; releases the GIL."""
        num_rows, width = len(logits), int(inputs.num_logprobs.max(initial=-1)) + 1
        outputs = SamplingOutputs(
            token_ids=np.empty(num_rows, np.int32),
            logprob_ids=np.full((num_rows, width), -1, np.int32),
            logprobs=np.zeros((num_rows, width), np.float32),
            ranks=np.full((num_rows, width), -1, np.int32),
        )
        self._core.sample(logits, *inputs, *outputs)
        return outputs

    def log_probabilities(
        self, logits: Float32Array, token_ids: Int32Array, num_logprobs: Int32Array
    ) -> LogprobOutputs:
        """Of one given token a row, and of the most likely ones; releases the GIL."""
        shape = len(logits), int(num_logprobs.max(initial=0)) + 1
        outputs = LogprobOutputs(
            logprob_ids=np.full(shape, -1, np.int32),
            logprobs=np.zeros(shape, np.float32),
            ranks=np.full(shape, -1, np.int32),
        )
        self._core.log_probabilities(logits, token_ids, num_logprobs, *outputs)
        return outputs

    def worker_cpu_s(self) -> float | None:
        """Processor time that the threads of this decoder have used, the caller's own not counted.

        None where the system does not tell. The spinning of a thread that waits for work is in it.
        """
        seconds: float | None = self._core.worker_cpu_s()
        return seconds
