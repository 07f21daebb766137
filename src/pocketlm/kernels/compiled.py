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
from pocketlm.kernels.spec import DecoderSpec

assert _core.BLOCK_SIZE == BLOCK_SIZE

padded_head_dim = _core.padded_head_dim


def available_isas() -> tuple[str, ...]:
    """The instruction sets that this build holds and this processor runs, best first."""
    return tuple(_core.available_isas())


class Decoder:
    def __init__(
        self,
        spec: DecoderSpec,
        weights: Mapping[str, NDArray[Any]],
        *,
        dtype: str,
        num_threads: int,
        isa: str,
    ) -> None:
        self.spec, self.dtype, self.num_threads = spec, dtype, num_threads
        self._core = _core.Decoder(spec, dict(weights), dtype, num_threads, isa)

    @property
    def weights_bytes(self) -> int:
        return self._core.weights_bytes

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
