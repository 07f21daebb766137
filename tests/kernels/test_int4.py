"""4-bit weights: what quantization promises, against the method as its paper has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pocketlm.kernels import int4

Array = NDArray[Any]


def random_matrix(num_inputs: int, num_columns: int) -> Array:
    return np.random.default_rng(1).standard_normal((num_inputs, num_columns)).astype(np.float32)


def related_inputs(num_rows: int, num_inputs: int) -> Array:
    """Rows whose entries depend on each other, as those of a model do."""
    rng = np.random.default_rng(2)
    num_causes = num_inputs // 8
    rows = rng.standard_normal((num_rows, num_causes)) @ rng.standard_normal((num_causes, num_inputs))
    return np.asarray(rows + 0.3 * rng.standard_normal((num_rows, num_inputs)))


def scales_of(matrix: int4.Int4Matrix) -> Array:
    """[K rounded up to 16, N]"""
    of_groups = np.repeat(matrix.group_scales, int4.GROUP_SIZE, axis=0)
    return np.asarray(of_groups * matrix.column_scales.astype(np.float64))


def values(matrix: int4.Int4Matrix) -> Array:
    return np.asarray(matrix.numbers * scales_of(matrix))


def as_in_the_paper(weight: Array, inputs: Array, scales: Array) -> Array:
    """Algorithm 1 of Frantar et al. 2022, without its blocks: numbers [K, N]."""
    weight = weight.astype(np.float64)
    moments = inputs.T @ inputs
    moments += int4.DAMPING * np.mean(np.diag(moments)) * np.eye(len(moments))
    factor = np.linalg.cholesky(np.linalg.inv(moments)).T  # upper
    numbers = np.empty_like(weight)
    for row in range(len(weight)):
        numbers[row] = np.clip(np.rint(weight[row] / scales[row]), -8, 7)
        error = (weight[row] - numbers[row] * scales[row]) / factor[row, row]
        weight[row:] -= np.outer(factor[row, row:], error)
    return numbers


@pytest.mark.parametrize("num_inputs", [16, 144, 400])
def test_numbers_are_those_of_the_paper(num_inputs: int) -> None:
    weight, inputs = random_matrix(num_inputs, 5), related_inputs(60, num_inputs)
    matrix = int4.quantize(weight, inputs)
    assert (matrix.numbers == as_in_the_paper(weight, inputs, scales_of(matrix))).all()


def test_products_are_closer_with_inputs_than_without() -> None:
    weight, inputs = random_matrix(256, 40), related_inputs(1000, 256)
    seen, unseen = inputs[:500], inputs[500:]

    def error(matrix: int4.Int4Matrix) -> float:
        return float(np.square(unseen @ (weight - values(matrix))).mean())

    assert error(int4.quantize(weight, seen)) < 0.5 * error(int4.quantize(weight))


def test_without_inputs_each_number_is_the_nearest() -> None:
    weight = random_matrix(64, 7)
    matrix = int4.quantize(weight)
    off = np.abs(values(matrix) - weight) / np.abs(scales_of(matrix))
    inner = (matrix.numbers > -8) & (matrix.numbers < 7)
    assert inner.mean() > 0.8
    assert off[inner].max() <= 0.5 + 1e-6
    assert off.max() < 1.2  # what lies beyond the ends is cut off


@pytest.mark.parametrize("with_inputs", [True, False])
def test_columns_do_not_depend_on_those_beside_them(
    with_inputs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, inputs = random_matrix(48, 9), related_inputs(30, 48) if with_inputs else None
    whole = int4.quantize(weight, inputs)
    monkeypatch.setattr(int4, "CHUNK_COLUMNS", 4)
    for one, other in zip(whole, int4.quantize(weight, inputs), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_up_to_a_whole_group_hold_zeros() -> None:
    weight, inputs = random_matrix(37, 3), related_inputs(20, 37)
    matrix = int4.quantize(weight, inputs)
    assert matrix.numbers.shape == (48, 3)
    assert matrix.group_scales.shape == (3, 3)
    assert not matrix.numbers[37:].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_column_that_is_not_finite_has_a_scale_of_nan(bad: float) -> None:
    weight, inputs = random_matrix(32, 4), related_inputs(20, 32)
    clean = int4.quantize(weight, inputs)
    weight[5, 2] = bad
    matrix = int4.quantize(weight, inputs)
    assert np.isnan(matrix.column_scales).tolist() == [False, False, True, False]
    others = [0, 1, 3]
    np.testing.assert_array_equal(matrix.numbers[:, others], clean.numbers[:, others])


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_inputs_that_tell_nothing_are_left_out(value: float) -> None:
    weight = random_matrix(32, 4)
    for one, other in zip(int4.quantize(weight), int4.quantize(weight, np.full((3, 32), value)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_zeros_and_tiny_weights_become_zeros() -> None:
    weight = np.full((32, 2), 1e-38, np.float32)
    weight[:, 0] = 0
    assert not values(int4.quantize(weight)).any()
