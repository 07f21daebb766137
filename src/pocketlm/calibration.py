"""What the matrices of a model are multiplied with when a text runs through it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm.accuracy import logits_of
from pocketlm.kernels import DecoderSpec, reference

Array = NDArray[Any]
Weights = Mapping[str, Array]


def matrix_inputs(
    spec: DecoderSpec, weights: Weights, token_ids: list[int], keep: Callable[[Array], Array] = np.asarray
) -> dict[str, Array]:
    """By slot, what `keep` makes of the rows [T, K] that a matrix is multiplied with."""
    recorder = _Recorder(spec, weights, keep)
    with np.errstate(all="ignore"):  # what is not finite stays so
        for _ in logits_of(recorder, token_ids, chunk_size=max(1, len(token_ids))):
            pass
    return {slot: linear.kept for slot, linear in recorder.recorded.items()}


class _Recorder(reference.Decoder):
    """The forward pass in float64, whole matrices at a time: it makes no promise to keep."""

    float_type = np.float64

    def __init__(self, spec: DecoderSpec, weights: Weights, keep: Callable[[Array], Array]) -> None:
        self.spec, self.weights, self.dtype, self.num_threads = spec, weights, "float32", 1
        self.recorded = {
            name.removesuffix(".weight"): _RecordingLinear(
                # Nobody reads the logits: one column of the head is enough.
                weights[name][:, :1] if name == "head.weight" else weights[name],
                weights.get(name.removesuffix("weight") + "bias"),
                keep,
            )
            for name in spec.matrix_shapes()
            if name != "token_embedding"
        }
        self.linears = dict(self.recorded)


class _RecordingLinear(reference.Linear):
    def __init__(self, weight: Array, bias: Array | None, keep: Callable[[Array], Array]) -> None:
        self.weight = weight
        self.bias = np.float32(0) if bias is None else bias[: weight.shape[1]]
        self.keep = keep
        self.kept = keep(np.zeros((1, len(weight))))

    def __call__(self, x: Array) -> Array:
        self.kept = self.keep(x)
        return np.asarray(x @ self.weight.astype(np.float64) + self.bias)
