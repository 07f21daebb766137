"""The forward pass in NumPy: the definition of what the compiled core computes.

Read it as the specification. It is also the slow way to run where the core was not built, and there
it keeps the same promise: a row's numbers do not depend on the rows beside it. That is why float
matrices are multiplied one row at a time: BLAS sums in another order when the batch has another shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
from pocketlm.kernels.int4 import GROUP_SIZE
from pocketlm.kernels.quantize import quantize
from pocketlm.kernels.reference_kv_cache import FloatKVCache, Int8KVCache, KVCache
from pocketlm.kernels.reference_sampler import report, sample
from pocketlm.kernels.spec import DecoderSpec

Array = NDArray[Any]


class Decoder:
    float_type: type[np.floating[Any]] = np.float32  # calibration.py has a subclass that computes in float64

    def __init__(
        self,
        spec: DecoderSpec,
        weights: Mapping[str, Array],
        *,
        dtype: str,
        num_threads: int = 1,
        calibration: Mapping[str, Array] = MappingProxyType({}),
        rounds_activations: bool = False,
    ) -> None:
        """`rounds_activations`: in bfloat16, as the instruction sets do that multiply it."""
        self.spec, self.dtype, self.num_threads = spec, dtype, num_threads
        self.weights = weights
        self.linears = {}
        for name in spec.matrix_shapes():
            slot = name.removesuffix(".weight")
            if name != "token_embedding":
                bias = weights.get(_bias_of(name))
                inputs = calibration.get(slot)
                self.linears[slot] = linear(weights[name], bias, dtype, inputs, rounds_activations)

    @property
    def weights_bytes(self) -> int:
        return sum(linear.num_bytes for linear in self.linears.values())

    def new_kv_cache(self, num_blocks: int) -> KVCache:
        if self.dtype in ("int8", "int4"):
            return Int8KVCache.empty(self.spec, num_blocks)
        return FloatKVCache.empty(
            self.spec, num_blocks, self.float_type if self.dtype == "float32" else np.float16
        )

    def forward(self, inputs: ForwardInputs, kv_cache: KVCache) -> Float32Array:
        """Logits of the rows asked for [R, V]; the keys and values of all T tokens go into the cache."""
        spec = self.spec
        x = self.weights["token_embedding"][inputs.token_ids].astype(self.float_type)  # [T, E]
        x *= np.float32(spec.embedding_scale)
        if "position_embedding" in self.weights:
            x += self.weights["position_embedding"][inputs.positions + spec.position_offset]
        for layer in range(spec.num_layers):
            prefix = f"layers.{layer}."
            normed = self._norm(prefix + "attention_norm", x)
            attended = self._attention(layer, normed, inputs, kv_cache)
            if spec.parallel_residual:
                if prefix + "mlp_norm.weight" in self.weights:
                    normed = self._norm(prefix + "mlp_norm", x)
                x = x + attended + self._mlp(prefix, normed)
            else:
                x = x + attended
                x = x + self._mlp(prefix, self._norm(prefix + "mlp_norm", x))
        return self.linears["head"](self._norm("final_norm", x[inputs.logit_rows]))

    def sample(self, logits: Float32Array, inputs: SamplingInputs) -> SamplingOutputs:
        return sample(logits, inputs)

    def log_probabilities(
        self, logits: Float32Array, token_ids: Int32Array, num_logprobs: Int32Array
    ) -> LogprobOutputs:
        return report(logits, token_ids, num_logprobs)

    def worker_cpu_s(self) -> float | None:
        return 0.0  # all is done by the thread that calls

    def _norm(self, name: str, x: Float32Array) -> Float32Array:
        """Layer norm (Ba et al. 2016) or RMS norm (Zhang and Sennrich 2019) of each row."""
        if self.spec.norm == "layer":
            x = x - x.mean(axis=1, keepdims=True)
        variance = np.square(x).mean(axis=1, keepdims=True)
        y = x / np.sqrt(variance + np.float32(self.spec.norm_epsilon)) * self.weights[name + ".weight"]
        bias = self.weights.get(name + ".bias")
        return np.asarray(y if bias is None else y + bias, x.dtype)

    def _mlp(self, prefix: str, x: Float32Array) -> Float32Array:
        activation = ACTIVATIONS[self.spec.activation]
        up = self.linears[prefix + "up"](x)  # [T, I]
        if self.spec.gated_mlp:
            hidden = activation(self.linears[prefix + "gate"](x)) * up
        else:
            hidden = activation(up)
        return self.linears[prefix + "down"](hidden)

    def _attention(
        self, layer: int, x: Float32Array, inputs: ForwardInputs, kv_cache: KVCache
    ) -> Float32Array:
        """Causal attention over paged keys and values, G heads shared by H."""
        spec = self.spec
        num_tokens, num_heads, num_kv_heads, head_dim = (
            len(x),
            spec.num_heads,
            spec.num_kv_heads,
            spec.head_dim,
        )
        qkv = self.linears[f"layers.{layer}.qkv"](x).reshape(num_tokens, -1, head_dim)
        queries, keys, values = np.split(qkv, [num_heads, num_heads + num_kv_heads], axis=1)
        if spec.rotary_frequencies:
            queries = rotate(queries, inputs.positions, spec.rotary_frequencies)
            keys = rotate(keys, inputs.positions, spec.rotary_frequencies)
        slots = (layer, inputs.slot_mapping // BLOCK_SIZE, inputs.slot_mapping % BLOCK_SIZE)
        kv_cache.keep(slots, keys, values)

        attended = np.empty((num_tokens, num_heads, head_dim), x.dtype)
        scale = spec.attention_scales[layer]
        sequence_of = np.repeat(np.arange(len(inputs.context_lens)), np.diff(inputs.query_starts))
        for t in range(num_tokens):
            length = int(inputs.positions[t]) + 1
            blocks = inputs.block_tables[sequence_of[t], : -(-length // BLOCK_SIZE)]
            q = queries[t].reshape(num_kv_heads, -1, head_dim)  # [G, H / G, D]
            mixed = kv_cache.attend(layer, blocks, length, q, scale)
            attended[t] = mixed.reshape(num_heads, head_dim)
        return self.linears[f"layers.{layer}.attention_out"](attended.reshape(num_tokens, -1))


class Linear:
    """x W + b in float32; in bfloat16 W is rounded to that before."""

    def __init__(self, weight: Array, bias: Array | None) -> None:
        self.weight = weight.astype(np.float32)  # [K, N]
        self.bias = np.float32(0) if bias is None else bias.astype(np.float32)

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Float32Array) -> Float32Array:
        out = np.empty((len(x), self.weight.shape[1]), np.float32)
        for row, out_row in zip(x, out, strict=True):
            np.matmul(row, self.weight, out=out_row)
        return out + self.bias


class LinearBFloat16(Linear):
    """x W + b with x and W rounded to bfloat16; products and sums in float32."""

    def __init__(self, weight: Array, bias: Array | None) -> None:
        super().__init__(to_bfloat16(weight), bias)

    def __call__(self, x: Float32Array) -> Float32Array:
        return super().__call__(to_bfloat16(x))


class LinearInt8:
    """x W + b with 8-bit weights, one scale a column, and 8-bit activations, one scale a row.

    Sums of products of two 8-bit numbers are exact, here in float64 because BLAS is fast at it.
    """

    def __init__(self, weight: Array, bias: Array | None) -> None:
        columns, self.scales = quantize(weight.astype(np.float32).T)
        self.weight = columns.T.astype(np.float64)  # [K, N]
        self.bias = np.float32(0) if bias is None else bias.astype(np.float32)

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes

    def __call__(self, x: Float32Array) -> Float32Array:
        quantized, scales = quantize(x)
        sums = (quantized.astype(np.float64) @ self.weight).astype(np.float32)  # [T, N]
        return sums * (scales[:, None] * self.scales) + self.bias


class LinearInt4:
    """x W + b with 4-bit weights, as int4.py makes them, and activations as in int8.

    The sums of a group are exact; from group to group they are added up in float32, in the order of K.
    """

    def __init__(self, weight: Array, bias: Array | None, inputs: Array | None) -> None:
        numbers, group_scales, self.scales = int4.quantize(weight, inputs)
        self.num_inputs, num_columns = weight.shape
        self.weight = numbers.reshape(-1, GROUP_SIZE, num_columns).astype(np.float64)  # [K / 16, 16, N]
        self.group_scales = group_scales.astype(np.float32)  # [K / 16, N]
        self.bias = np.float32(0) if bias is None else bias.astype(np.float32)

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes + self.group_scales.nbytes

    def __call__(self, x: Float32Array) -> Float32Array:
        quantized, scales = quantize(x)
        padded = np.zeros((len(x), len(self.weight) * GROUP_SIZE))
        padded[:, : self.num_inputs] = quantized
        out = np.zeros((len(x), self.weight.shape[2]), np.float32)  # [T, N]
        for i, (numbers, group_scales) in enumerate(zip(self.weight, self.group_scales, strict=True)):
            sums = padded[:, i * GROUP_SIZE : (i + 1) * GROUP_SIZE] @ numbers
            out += group_scales * sums.astype(np.float32)
        return out * (scales[:, None] * self.scales) + self.bias


def to_bfloat16(x: Array) -> Float32Array:
    """x, rounded to the floats whose lower 16 bits are zero; ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) & 0xFFFF0000
    return np.where(np.isnan(x), np.float32(np.nan), rounded.view(np.float32))


def linear(
    weight: Array, bias: Array | None, dtype: str, inputs: Array | None, rounds_activations: bool
) -> Linear | LinearInt8 | LinearInt4:
    """x W + b in a number format; `inputs` [T, K] are some x, if any are known."""
    if dtype == "int4":
        return LinearInt4(weight, bias, inputs)
    if dtype == "int8":
        return LinearInt8(weight, bias)
    if dtype == "bfloat16" and rounds_activations:
        return LinearBFloat16(weight, bias)
    return Linear(to_bfloat16(weight) if dtype == "bfloat16" else weight, bias)


def rotate(x: Float32Array, positions: Array, frequencies: tuple[float, ...]) -> Float32Array:
    """Rotary position embedding (Su et al. 2021) of the first 2 * len(frequencies) entries of each head.

    x [T, heads, D]; entries i and i + len(frequencies) turn together by positions * frequencies[i].
    """
    half = len(frequencies)
    angles = positions[:, None].astype(np.float64) * np.array(frequencies)  # [T, half]
    cos = np.cos(angles).astype(x.dtype)[:, None]
    sin = np.sin(angles).astype(x.dtype)[:, None]
    first, second = x[..., :half], x[..., half : 2 * half]
    return np.concatenate(
        [first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]], axis=-1
    )


def _bias_of(name: str) -> str:
    return name.removesuffix("weight") + "bias"


def _sigmoid(x: Float32Array) -> Float32Array:
    return np.float32(1) / (np.float32(1) + np.exp(np.minimum(-x, np.float32(80))))


def _gelu(x: Float32Array) -> Float32Array:
    erf = np.vectorize(math.erf, otypes=[x.dtype])
    return np.float32(0.5) * x * (1 + erf(x * np.float32(math.sqrt(0.5))))


def _gelu_tanh(x: Float32Array) -> Float32Array:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (1 + np.tanh(inner))


ACTIVATIONS: dict[str, Callable[[Float32Array], Float32Array]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * _sigmoid(np.float32(1.702) * x),
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu_squared": lambda x: np.square(np.maximum(x, 0)),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
}
