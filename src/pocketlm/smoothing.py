"""Smoothing: the same function with smaller peaks, so that 8-bit activations lose less.

A checkpoint may have channels many times larger than the rest (GPT-2's larger sizes do). As a row of
activations has one scale, they leave few of its 256 numbers to the others. So they are divided by s where
they are made, and the matrix that reads them is multiplied by s before it is packed (SmoothQuant, Xiao et
al. 2022, arXiv:2211.10438), at no cost when the model runs:

    weight and bias of a norm / s          rows of qkv, of gate and up, of the head * s
    columns of the values in qkv / s       rows of attention_out * s
    columns of up / s, with a gated MLP    rows of down * s

s is 1 for a channel that does not stick out. Where all are scaled (s = sqrt(max|x| / max|w|)), 8-bit weights
gain nothing and 4-bit ones, whose scales span several rows, lose.

The peaks are those of a passage, found in float64, and s is a power of two: so no weight is rounded, and s
is the same on every machine, whatever the order of its sums.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from pocketlm.calibration import Array, Weights, matrix_inputs
from pocketlm.kernels import DecoderSpec

SMOOTHING_VERSION = 1  # of what `smooth` returns, given equal arguments
SMOOTHED_DTYPES = ("int8", "int4")  # the formats with 8-bit activations
STICKS_OUT = 6.0  # a peak this many times the median one
KEPT = 2.0  # and about how many times it is afterwards


class SmoothedWeights(Weights):
    """Weights some of which are multiplied when they are asked for, so that no copy of all is in memory."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._factors: dict[str, list[Array]] = defaultdict(list)

    def scale(self, name: str, factors: Array) -> None:
        """Multiply by factors, [K, 1] for the rows of a matrix or [N] for its columns, or of a vector."""
        if name in self._weights and (factors != 1).any():
            self._factors[name].append(factors)

    def __getitem__(self, name: str) -> Array:
        weight = self._weights[name]
        for factors in self._factors.get(name, ()):
            weight = weight * factors  # float32, also where the checkpoint is in float16
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def smooth(spec: DecoderSpec, weights: Weights, token_ids: list[int]) -> SmoothedWeights:
    """Weights of the same function whose activations, on these tokens, have no channel that sticks out."""
    peaks = matrix_inputs(spec, weights, token_ids, keep=peaks_of)
    smoothed = SmoothedWeights(weights)

    def multiply_rows(slot: str, scales: Array) -> None:
        smoothed.scale(f"{slot}.weight", scales[:, None])

    def divide_columns(slot: str, scales: Array) -> None:
        for kind in ("weight", "bias"):
            smoothed.scale(f"{slot}.{kind}", 1 / scales)

    for norm, readers in _readers(spec, weights):
        scales = _scales(peaks[readers[0]])  # all of them read the same
        divide_columns(norm, scales)
        for slot in readers:
            multiply_rows(slot, scales)
    num_kept = (spec.num_heads + spec.num_kv_heads) * spec.head_dim  # columns of queries and keys
    for i in range(spec.num_layers):
        qkv, attention_out, up, down = (f"layers.{i}.{s}" for s in ("qkv", "attention_out", "up", "down"))
        # [G, H / G, D]: the heads that share a value share its scale.
        by_kv_head = peaks[attention_out].reshape(spec.num_kv_heads, -1, spec.head_dim)
        scales = _scales(by_kv_head.max(axis=1).ravel()).reshape(spec.num_kv_heads, 1, spec.head_dim)
        divide_columns(qkv, np.concatenate([np.ones(num_kept, np.float32), scales.ravel()]))
        multiply_rows(attention_out, np.broadcast_to(scales, by_kv_head.shape).ravel())
        if spec.gated_mlp:
            scales = _scales(peaks[down])
            divide_columns(up, scales)
            multiply_rows(down, scales)
    return smoothed


def peaks_of(rows: Array) -> Array:
    """[T, K] -> [K]"""
    return np.asarray(np.abs(rows).max(axis=0))


def _readers(spec: DecoderSpec, weights: Weights) -> Iterator[tuple[str, list[str]]]:
    """Each norm, with the matrices that read what comes out of it."""
    for i in range(spec.num_layers):
        prefix = f"layers.{i}."
        mlp = [prefix + "gate", prefix + "up"] if spec.gated_mlp else [prefix + "up"]
        if prefix + "mlp_norm.weight" in weights:
            yield prefix + "attention_norm", [prefix + "qkv"]
            yield prefix + "mlp_norm", mlp
        else:
            yield prefix + "attention_norm", [prefix + "qkv", *mlp]
    yield "final_norm", ["head"]


def _scales(peaks: Array) -> Array:
    """s of each channel: a power of two, 1 where the peak does not stick out or is not finite."""
    with np.errstate(all="ignore"):
        ratios = peaks / np.median(peaks)
    sticks_out = np.isfinite(ratios) & (ratios > STICKS_OUT)
    exponents = np.rint(np.log2(ratios / KEPT, where=sticks_out, out=np.zeros_like(ratios)))
    return np.asarray(np.exp2(exponents), np.float32)
