"""Numbers: the forward pass and the sampler, compiled where possible, in NumPy where not.

POCKETLM_ISA forces an instruction set; without it the best that this processor runs is taken.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from pocketlm.errors import ConfigError
from pocketlm.kernels import reference
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
from pocketlm.kernels.spec import DecoderSpec

try:
    import pocketlm.kernels.compiled as compiled
except ModuleNotFoundError as error:
    if error.name != "pocketlm.kernels._core":
        raise
    COMPILED_ISAS: tuple[str, ...] = ()
else:
    COMPILED_ISAS = compiled.available_isas()

__all__ = [
    "BLOCK_SIZE",
    "COMPILED_ISAS",
    "DTYPES",
    "Decoder",
    "DecoderSpec",
    "ForwardInputs",
    "KVCache",
    "LogprobOutputs",
    "PackedWeights",
    "SamplingInputs",
    "SamplingOutputs",
    "available_isas",
    "create_decoder",
    "create_packed_decoder",
    "isa",
    "kv_block_bytes",
    "packed_weights",
]

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "int8", "int4")

# They multiply bfloat16 weights with activations in bfloat16, the others with floats.
ISAS_THAT_ROUND = ("avx512_bf16",)


class KVCache(Protocol):
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...


class Decoder(Protocol):
    """A model ready to compute; what the engine sees of it."""

    @property
    def spec(self) -> DecoderSpec: ...
    @property
    def dtype(self) -> str: ...
    @property
    def num_threads(self) -> int: ...
    @property
    def weights_bytes(self) -> int: ...
    def new_kv_cache(self, num_blocks: int) -> Any: ...
    def forward(self, inputs: ForwardInputs, kv_cache: Any) -> Float32Array: ...
    def sample(self, logits: Float32Array, inputs: SamplingInputs) -> SamplingOutputs: ...
    def log_probabilities(
        self, logits: Float32Array, token_ids: Int32Array, num_logprobs: Int32Array
    ) -> LogprobOutputs: ...
    def worker_cpu_s(self) -> float | None: ...


def available_isas() -> tuple[str, ...]:
    """The instruction sets this build and this processor have, best first, "reference" last."""
    return (*COMPILED_ISAS, "reference")


@functools.cache
def isa() -> tuple[str, str]:
    """The instruction set in use, and why."""
    forced = os.environ.get("POCKETLM_ISA", "auto")
    if forced not in ("auto", *available_isas()):
        raise ConfigError(
            f"POCKETLM_ISA is {forced!r}; this build on this processor has auto, "
            + ", ".join(available_isas())
        )
    if forced != "auto":
        name, reason = forced, "forced by POCKETLM_ISA"
    elif COMPILED_ISAS:
        name, reason = COMPILED_ISAS[0], "the best this processor runs"
    else:
        name, reason = "reference", "the compiled core was not built; install a C++ compiler and reinstall"
    if name == "reference":
        log.warning("running on the NumPy reference, which is slow: %s", reason)
    return name, reason


def kv_block_bytes(spec: DecoderSpec, dtype: str) -> int:
    """What one block of the KV cache takes, over all layers."""
    if isa()[0] == "reference":
        head_dim = spec.head_dim
    else:
        head_dim = compiled.padded_head_dim(spec.head_dim)
    if dtype in ("int8", "int4"):
        head_bytes = head_dim + 4  # with the scale
    else:
        head_bytes = head_dim * (4 if dtype == "float32" else 2)
    return 2 * spec.num_layers * spec.num_kv_heads * BLOCK_SIZE * head_bytes


def create_decoder(
    spec: DecoderSpec,
    weights: Mapping[str, np.ndarray[Any, Any]],
    *,
    dtype: str,
    num_threads: int,
    isa_name: str | None = None,
    calibration: Mapping[str, np.ndarray[Any, Any]] = MappingProxyType({}),
) -> Decoder:
    """Pack the weights (named and shaped as spec.py says) for an instruction set, by default `isa()`.

    `calibration` has rows [T, K] that matrices are multiplied with, by slot; int4 is closer for it.
    """
    name = isa_name or isa()[0]
    if name == "reference":
        return reference.Decoder(spec, weights, dtype=dtype, num_threads=num_threads, calibration=calibration)
    packed = compiled.pack(spec, weights, dtype=dtype, num_threads=num_threads, calibration=calibration)
    return compiled.Decoder(spec, packed, num_threads=num_threads, isa=name)


def create_packed_decoder(spec: DecoderSpec, weights: PackedWeights, *, num_threads: int) -> Decoder:
    """A compiled decoder of weights that are packed already. ValueError if they are not this spec's."""
    return compiled.Decoder(spec, weights, num_threads=num_threads, isa=isa()[0])


def packed_weights(decoder: Decoder) -> PackedWeights | None:
    """What a decoder computes with; None if it is the reference, which packs nothing."""
    return decoder.weights if COMPILED_ISAS and isinstance(decoder, compiled.Decoder) else None
