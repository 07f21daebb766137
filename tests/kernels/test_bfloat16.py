"""bfloat16 weights: how floats are rounded to them, by the reference and by the compiled core."""

from __future__ import annotations

import numpy as np
import pytest

from pocketlm import kernels
from pocketlm.kernels.inputs import Float32Array
from pocketlm.kernels.reference import to_bfloat16

SPACING = np.float32(2**-7)  # of the bfloat16 numbers from 1 to 2
LARGEST = np.float32((2 - SPACING) * 2.0**127)


def random_floats(size: int) -> Float32Array:
    """Finite ones of every magnitude, subnormal ones among them."""
    floats = np.random.default_rng(1).integers(2**32, size=size, dtype=np.uint32).view(np.float32)
    finite = floats[np.isfinite(floats)]
    return finite[np.abs(finite) < LARGEST]


def test_each_float_goes_to_the_nearest() -> None:
    x = random_floats(10_000)
    found = to_bfloat16(x)
    bits = found.view(np.uint32)
    assert not (bits & 0xFFFF).any()
    errors = np.abs(found.astype(np.float64) - x)
    for other in (bits - 0x10000, bits + 0x10000):  # beside it; of zero one is a NaN, which is not nearer
        assert not (np.abs(other.view(np.float32).astype(np.float64) - x) < errors).any()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1 + 0.5 * SPACING, 1),
        (1 + 1.5 * SPACING, 1 + 2 * SPACING),
        (-1 - 1.5 * SPACING, -1 - 2 * SPACING),
        (np.finfo(np.float32).max, np.inf),
        (-np.finfo(np.float32).max, -np.inf),
        (np.inf, np.inf),
        (0.0, 0.0),
    ],
)
def test_ties_go_to_the_even_one_and_what_is_too_large_to_infinity(value: float, expected: float) -> None:
    assert to_bfloat16(np.array([value], np.float32))[0] == expected


@pytest.mark.skipif(not kernels.COMPILED_ISAS, reason="the compiled core was not built")
def test_the_core_packs_the_same_numbers() -> None:
    """A panel holds k = 2i beside k = 2i + 1, for each column."""
    from pocketlm.kernels import _core

    nan_of_low_bits = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    special = np.array([np.inf, -np.inf, -0.0, 1 + 0.5 * SPACING, np.finfo(np.float32).max], np.float32)
    values = np.concatenate([special, nan_of_low_bits, random_floats(3 * 70)])[: 3 * 70]
    weight = values.reshape(3, 70)  # [K, N]
    [panels] = _core.pack_matrix("mine", weight, "bfloat16", 1)
    assert panels.shape == (2, 2, 256) and panels.dtype == np.uint8
    packed = panels.view(np.uint16).reshape(2, 2, 64, 2).transpose(1, 3, 0, 2).reshape(4, 128)  # [K, columns]
    found = (packed.astype(np.uint32) << 16).view(np.float32)
    assert not found[3:].any()
    found = found[:3]
    np.testing.assert_array_equal(found[:, :70], to_bfloat16(weight))
    assert not found[:, 70:].any()
