"""The compiled core behind the interface of reference.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pocketlm.kernels._core as _core
from pocketlm.kernels import int4
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
from pocketlm.kernels.spec import TABLES, DecoderSpec

assert _core.BLOCK_SIZE == BLOCK_SIZE

padded_head_dim = _core.padded_head_dim


def available_isas() -> tuple[str, ...]:
    """The instruction sets that this build holds and this processor runs, best first."""
    return tuple(_core.available_isas())


def pack(
    spec: DecoderSpec,
    weights: Mapping[str, NDArray[Any]],
    *,
    dtype: str,
    num_threads: int,
    calibration: Mapping[str, NDArray[Any]] = MappingProxyType({}),
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
            if dtype == "int4":
                parts = _pack_int4(int4.quantize(weight, calibration.get(slot)))
            else:
                parts = _core.pack_matrix(name, weight, dtype, num_threads)
            arrays.update(zip((name, f"{slot}.scales"), parts, strict=False))
            bias = np.zeros(weight.shape[1], np.float32)
            bias += weights.get(f"{slot}.bias", 0)
            arrays[f"{slot}.bias"] = _padded(bias)
        elif kind == "weight" or f"{slot}.weight" not in matrices:  # a norm's
            arrays[name] = np.array(weight, np.float32)
    return PackedWeights(dtype, arrays)


def _padded(columns: NDArray[Any], fill: int = 0) -> NDArray[Any]:
    """[..., N] -> [..., N rounded up to a panel]"""
    widths = [(0, 0)] * (columns.ndim - 1) + [(0, -columns.shape[-1] % _core.PANEL_COLUMNS)]
    return np.pad(columns, widths, constant_values=fill)


def _pack_int4(matrix: int4.Int4Matrix) -> tuple[NDArray[Any], NDArray[Any]]:
    """Panels [N / 64, K / 16, 576], in the layout that csrc/kernels.h has, and the scales of columns."""
    halves = _padded((matrix.numbers + 8).astype(np.uint8), fill=8)
    halves = halves.reshape(len(matrix.group_scales), 2, 2, 4, -1, _core.PANEL_COLUMNS)
    both = halves[:, :, 0] | halves[:, :, 1] << 4  # [K / 16, 2, 4, panels, 64]
    num_groups, _, _, num_panels, _ = both.shape
    numbers = both.transpose(3, 0, 1, 4, 2).reshape(num_panels, num_groups, -1)  # 2 by 64 by 4 bytes a group
    scales = _padded(matrix.group_scales).reshape(num_groups, num_panels, -1).transpose(1, 0, 2)
    panels = _aligned((num_panels, num_groups, numbers.shape[2] + scales.shape[2]))
    np.concatenate([numbers, scales.view(np.uint8)], axis=2, out=panels)
    return panels, _padded(matrix.column_scales)


def _aligned(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An array of bytes that begins with a cache line, as the core wants its panels."""
    size = math.prod(shape)
    memory = np.empty(size + _core.PANEL_ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _core.PANEL_ALIGNMENT
    return memory[start : start + size].reshape(shape)


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
