from __future__ import annotations

from typing import Any

import pytest

from training.errors import RecipeError
from training.recipe import FULL, MAX_WEIGHTS_BYTES, SMOKE, Recipe


def test_the_full_recipe_fits_the_package() -> None:
    assert FULL.num_parameters == 8_677_888 and FULL.weights_bytes == 17_355_776 <= MAX_WEIGHTS_BYTES
    assert SMOKE.num_parameters < FULL.num_parameters / 50


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"muon_lr": 0.0}, "muon_lr must be at least"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"hidden_size": 250}, "multiple of num_heads, got 250 and 4"),
        ({"dropout": 1.0}, "dropout must be below 1"),
        ({"dtype": "float16"}, "dtype must be bfloat16 or float32, got float16"),
        ({"num_steps": 100}, r"warmup_steps must be below num_steps \(100\)"),
        ({"vocab_size": 70_000, "hidden_size": 64}, "vocab_size must be at most 65536"),
        ({"num_layers": 9}, "9,467,648 parameters take 18,935,296 bytes in float16"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe(**changes)
