"""How the reference keeps keys and values, and what attention makes of them: in floats, and in 8 bits.

Both attend as Vaswani et al. 2017: softmax(scale * q K) V, for the queries of one token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pocketlm.kernels.inputs import BLOCK_SIZE, Int32Array
from pocketlm.kernels.quantize import quantize
from pocketlm.kernels.spec import DecoderSpec

Array = NDArray[Any]
Slots = tuple[int, Int32Array, Int32Array]  # layer, blocks [T], rows in them [T]


@dataclass
class FloatKVCache:
    keys: Array  # [L, num_blocks, BLOCK_SIZE, G, D]
    values: Array  # the same

    @staticmethod
    def empty(spec: DecoderSpec, num_blocks: int, dtype: DTypeLike) -> FloatKVCache:
        shape = (spec.num_layers, num_blocks, BLOCK_SIZE, spec.num_kv_heads, spec.head_dim)
        return FloatKVCache(np.zeros(shape, dtype), np.zeros(shape, dtype))

    @property
    def num_blocks(self) -> int:
        return int(self.keys.shape[1])

    @property
    def num_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes

    def keep(self, slots: Slots, keys: Array, values: Array) -> None:
        """Write the keys and values [T, G, D] of T tokens."""
        self.keys[slots] = keys
        self.values[slots] = values

    def attend(self, layer: int, blocks: Int32Array, length: int, queries: Array, scale: float) -> Array:
        """Of queries [G, H / G, D] to the first `length` positions in these blocks [B]; the same shape."""
        k, v = (_positions(part[layer, blocks])[:length] for part in (self.keys, self.values))  # [P, G, D]
        scores = np.einsum("ghd,pgd->ghp", queries, k.astype(queries.dtype)) * np.float32(scale)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = np.einsum("ghp,pgd->ghd", shares, v.astype(queries.dtype))
        return np.asarray(mixed / shares.sum(axis=-1, keepdims=True))


@dataclass
class Int8KVCache:
    """One scale a head and position. Queries, and the weights of values, have 8 bits as well.

    The weights have a scale in each block, not one in all, because the few positions that get nearly all
    attention would leave nothing to the others. Sums of products are exact, here in float64.
    """

    numbers: FloatKVCache  # int8
    key_scales: Array  # [L, num_blocks, BLOCK_SIZE, G] float32
    value_scales: Array  # the same

    @staticmethod
    def empty(spec: DecoderSpec, num_blocks: int) -> Int8KVCache:
        numbers = FloatKVCache.empty(spec, num_blocks, np.int8)
        shape = numbers.keys.shape[:-1]
        return Int8KVCache(numbers, np.zeros(shape, np.float32), np.zeros(shape, np.float32))

    @property
    def num_blocks(self) -> int:
        return self.numbers.num_blocks

    @property
    def num_bytes(self) -> int:
        return self.numbers.num_bytes + self.key_scales.nbytes + self.value_scales.nbytes

    def keep(self, slots: Slots, keys: Array, values: Array) -> None:
        key_numbers, self.key_scales[slots] = quantize(keys)
        value_numbers, self.value_scales[slots] = quantize(values)
        self.numbers.keep(slots, key_numbers, value_numbers)

    def attend(self, layer: int, blocks: Int32Array, length: int, queries: Array, scale: float) -> Array:
        k = _positions(self.numbers.keys[layer, blocks]).astype(np.float64)  # [B * 16, G, D]
        v = self.numbers.values[layer, blocks].astype(np.float64)  # [B, 16, G, D]
        key_scales, value_scales = (
            _positions(scales[layer, blocks]).T[:, None] for scales in (self.key_scales, self.value_scales)
        )  # [G, 1, B * 16]
        q, query_scales = quantize(queries)  # [G, H / G, D], [G, H / G]
        scores = np.einsum("ghd,pgd->ghp", q.astype(np.float64), k).astype(np.float32)
        scores *= key_scales * (query_scales * np.float32(scale))[..., None]
        attended = np.arange(len(k)) < length
        scores = np.where(attended, scores, np.float32(-np.inf))
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))  # [G, H / G, B * 16]
        weights = shares * np.where(attended, value_scales, 0)
        w, weight_scales = quantize(weights.reshape(*shares.shape[:2], len(blocks), BLOCK_SIZE))
        sums = np.einsum("ghbp,bpgd->ghbd", w.astype(np.float64), v).astype(np.float32)
        mixed = (sums * weight_scales[..., None]).sum(axis=2)
        return np.asarray(mixed / shares.sum(axis=-1, keepdims=True))


KVCache = FloatKVCache | Int8KVCache


def _positions(blocks: Array) -> Array:
    """[B, BLOCK_SIZE, ...] -> [B * BLOCK_SIZE, ...]"""
    return blocks.reshape(-1, *blocks.shape[2:])
