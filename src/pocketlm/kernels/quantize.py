"""Symmetric 8-bit numbers, as activations, keys and values have them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm.kernels.inputs import Float32Array

NEXT_TO_NOTHING = 1e-30  # 127 divided by less may be infinite; the same in csrc/quantize.h


def quantize(x: NDArray[Any]) -> tuple[NDArray[np.int8], Float32Array]:
    """8-bit numbers [..., K] and one scale a row [...], so that x is about numbers * scale.

    A row that holds a NaN or an infinity has a scale of NaN: what follows from it is not finite either.
    """
    largest = np.abs(x).max(axis=-1).astype(np.float32)
    finite = np.isfinite(largest)
    inverse = np.divide(
        np.float32(127), largest, out=np.zeros_like(largest), where=finite & (largest > NEXT_TO_NOTHING)
    )
    numbers = np.rint(np.where(finite[..., None], x, 0) * inverse[..., None]).astype(np.int8)
    return numbers, np.where(finite, largest / np.float32(127), np.float32(np.nan))
