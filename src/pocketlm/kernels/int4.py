"""4-bit weights: numbers from -8 to 7 in groups of 16 along K, with two scales.

    weight[k, n] is about numbers[k, n] * group_scales[k / 16, n] * column_scales[n]

Rounded one by one they cost much. What a matrix is multiplied with is alike from text to text, so the error
that rounding one row of the matrix makes in the products can be made good in the rows that follow (GPTQ,
Frantar et al. 2022, arXiv:2210.17323). Row after row the least is left of

    |X (W - Q)|^2 + damping |W - Q|^2

With few rows X [T, K] that needs no matrix of [K, K]. With r = X (W - Q) of the rows that are done, and
S = damping + the sum of x x^T over those that are not, what the others should become is W + X^T S^-1 r. In a
block of rows it is found by Cholesky's factor of the block's moments (Chen et al. 2025, arXiv:2507.18553).

All in float64, so that another machine, whose sums may have another order, finds the same numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

GROUP_SIZE = 16  # inputs whose weights share a scale
CHUNK_COLUMNS = 1024  # made at a time, so that what is computed on the way stays small
BLOCK_ROWS = 32
DAMPING = 0.1  # of the mean square of an input

# What the largest value of a group may become, where -8 to 7 is what there is. A little beyond -8 it is cut
# off, and the others are finer for it.
LARGEST = (-8.75, -8.5, -8.25, -8.0, -7.75, -7.5, -7.25, -7.0)
LEAST_SCALE = 1e-30  # what is smaller becomes 0


class Int4Matrix(NamedTuple):
    numbers: NDArray[np.int8]  # [K rounded up to 16, N] -8 to 7
    group_scales: NDArray[np.int8]  # [K / 16 rounded up, N] -127 to 127
    column_scales: NDArray[np.float32]  # [N], NaN where a weight was not finite


class Block(NamedTuple):
    """Rows of a matrix that are rounded together, and where the errors go."""

    rows: slice
    correction: Array  # [block, T] times r, what earlier blocks have left
    propagation: Array  # [block, block] what the error of row i changes in row j > i


def quantize(weight: Array, inputs: Array | None = None) -> Int4Matrix:
    """A matrix [K, N] in 4 bits; `inputs` [T, K] are rows that it is multiplied with, if any are known."""
    num_inputs, num_columns = weight.shape
    num_rows = -(-num_inputs // GROUP_SIZE) * GROUP_SIZE
    blocks = []
    if inputs is not None:
        inputs = np.pad(inputs.astype(np.float64), [(0, 0), (0, num_rows - num_inputs)])
        blocks = _blocks(inputs)
    made = Int4Matrix(
        np.zeros((num_rows, num_columns), np.int8),
        np.zeros((num_rows // GROUP_SIZE, num_columns), np.int8),
        np.zeros(num_columns, np.float32),
    )

    for start in range(0, num_columns, CHUNK_COLUMNS):
        chunk = slice(start, start + CHUNK_COLUMNS)
        columns = np.zeros((num_rows, len(made.column_scales[chunk])))
        columns[:num_inputs] = weight[:, chunk]
        finite = np.isfinite(columns).all(axis=0)
        columns[:, ~finite] = 0
        group_scales, column_scales = _scales(columns)
        made.numbers[:, chunk] = _rounded(columns, group_scales * column_scales, inputs, blocks)
        made.group_scales[:, chunk] = group_scales
        made.column_scales[chunk] = np.where(finite, column_scales, np.nan)
    return made


def peak_bytes(num_inputs: int, num_columns: int) -> int:
    """What making a matrix [K, N] takes beside what it returns and its inputs."""
    return 8 * 8 * num_inputs * min(CHUNK_COLUMNS, num_columns)


def _scales(columns: Array) -> tuple[Array, Array]:
    """Whole numbers for the groups [K / 16, N], and what all those of a column are multiplied with [N]."""
    wanted = np.array([_best_scales(group) for group in columns.reshape(-1, GROUP_SIZE, columns.shape[1])])
    column_scales = (np.abs(wanted).max(axis=0) / 127).astype(np.float32).astype(np.float64)
    return np.rint(_divide(wanted, column_scales)), column_scales


def _best_scales(group: Array) -> Array:
    """For each column of a group [16, N], the scale of some that has the least squared error."""
    peaks = np.take_along_axis(group, np.abs(group).argmax(axis=0)[None], axis=0)[0]
    best = np.zeros_like(peaks)
    least = np.full(peaks.shape, np.inf)
    for largest in LARGEST:
        scales = peaks / largest
        scales[np.abs(scales) < LEAST_SCALE] = 0
        errors = np.square(group - _nearest(group * _divide(1.0, scales)) * scales).sum(axis=0)
        better = (errors < least) & (scales != 0)
        least[better], best[better] = errors[better], scales[better]
    return best


def _rounded(columns: Array, scales: Array, inputs: Array | None, blocks: list[Block]) -> Array:
    """Numbers [K, N] of columns [K, N] whose groups have these scales [K / 16, N]."""
    scales = np.repeat(scales, GROUP_SIZE, axis=0)  # [K, N]
    inverses = _divide(1.0, scales)
    if not blocks or inputs is None:
        return _nearest(columns * inverses)
    numbers = np.empty_like(columns)
    residual = np.zeros((len(inputs), columns.shape[1]))  # [T, N] X (W - Q) so far
    for block in blocks:
        rows = block.rows
        wanted = columns[rows] + block.correction @ residual
        errors = np.empty_like(wanted)
        for i, row in enumerate(range(rows.start, rows.stop)):
            target = wanted[i] + block.propagation[:i, i] @ errors[:i]
            numbers[row] = _nearest(target * inverses[row])
            errors[i] = wanted[i] - numbers[row] * scales[row]
        residual += inputs[:, rows] @ (columns[rows] - numbers[rows] * scales[rows])
    return numbers


def _blocks(inputs: Array) -> list[Block]:
    """For rows [T, K]; none if they tell nothing, as where they are not finite or all 0."""
    num_rows, num_inputs = inputs.shape
    damping = DAMPING * float(np.square(inputs).sum()) / num_inputs
    if not 0 < damping < np.inf:
        return []
    rest = inputs @ inputs.T + damping * np.eye(num_rows)  # S [T, T]
    blocks = []
    for start in range(0, num_inputs, BLOCK_ROWS):
        rows = slice(start, min(start + BLOCK_ROWS, num_inputs))
        x = inputs[:, rows]  # [T, block]
        correction = np.linalg.solve(rest, x).T
        rest -= x @ x.T
        moments = np.eye(x.shape[1]) + x.T @ np.linalg.solve(rest, x)
        # moments = R R^T with R upper triangular: the lower factor, had the rows the opposite order.
        factor = np.linalg.cholesky(moments[::-1, ::-1])[::-1, ::-1]
        blocks.append(Block(rows, correction, factor / np.diag(factor)))
    return blocks


def _nearest(scaled: Array) -> Array:
    return np.clip(np.rint(scaled), -8, 7)


def _divide(a: Array | float, b: Array) -> Array:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(np.broadcast(a, b).shape), where=b != 0)
