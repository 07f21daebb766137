from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training import token_files
from training.errors import RecipeError
from training.token_files import Span, TokenFiles

CONTEXT = 16


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFiles:
    """Each token tells its place; the second source is half as long and read three times as often."""
    spans = [Span("one/long", 0, 600, 1.0), Span("two/short", 600, 900, 3.0)]
    ids = np.arange(900, dtype=np.uint16)
    token_files.write(
        tmp_path, train=ids, validation=ids[:100], validation_bytes=400, vocab_size=900, spans=spans
    )
    return token_files.read(tmp_path, CONTEXT)


def test_a_row_is_a_piece_of_one_source(tokens: TokenFiles) -> None:
    rows = np.concatenate([tokens.batch(i, batch_size=32, context=CONTEXT, seed=1) for i in range(500)])
    assert (np.diff(rows) == 1).all() and rows.shape == (16_000, CONTEXT + 1)
    is_first = rows[:, 0] < 600
    assert (is_first == (rows[:, -1] < 600)).all()
    assert rows.min() == 0 and rows.max() == 899  # the ends are drawn as well
    assert is_first.mean() == pytest.approx(600 / (600 + 3 * 300), abs=0.02)


def test_a_batch_depends_on_seed_and_step_alone(tokens: TokenFiles) -> None:
    def batch(step: int, seed: int) -> bytes:
        return tokens.batch(step, batch_size=4, context=CONTEXT, seed=seed).tobytes()

    assert batch(7, 1) == batch(7, 1)
    assert len({batch(7, 1), batch(8, 1), batch(7, 2)}) == 3


def test_bad_folders_are_named(tokens: TokenFiles, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="two/short has 300 tokens, and a context of 300"):
        token_files.read(tmp_path, 300)
    with pytest.raises(RecipeError, match="the validation text has 100 tokens"):
        token_files.read(tmp_path, 200)
    with pytest.raises(RecipeError, match=r"is not a folder that training.prepare wrote: .*data\.json"):
        token_files.read(tmp_path / "nowhere", CONTEXT)
