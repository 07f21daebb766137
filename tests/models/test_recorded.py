"""Our greedy tokens and logits against those that scripts/record_transformers.py stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_checkpoint
from driver import greedy

from pocketlm import kernels
from pocketlm.models import load_checkpoint

RECORDED = Path(__file__).parents[1] / "recorded"
CASES = json.loads((RECORDED / "gpt2.json").read_text())["cases"]


@pytest.fixture(scope="module")
def logits() -> dict[str, Any]:
    with np.load(RECORDED / "gpt2.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("isa", kernels.available_isas())
@pytest.mark.parametrize("index", range(len(CASES)))
def test_greedy_tokens_and_logits_equal_transformers(
    tmp_path: Path, logits: dict[str, Any], index: int, isa: str
) -> None:
    case = CASES[index]
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "m", tokenizer=False, **case["options"]))
    decoder = kernels.create_decoder(
        checkpoint.spec, checkpoint.weights, dtype="float32", num_threads=2, isa_name=isa
    )
    tokens, found = greedy(decoder, case["prompt"], len(case["tokens"]))
    assert tokens == case["tokens"]
    for name, row in {"first": found[0], "last": found[-1]}.items():
        expected = logits[f"{index}.{name}"]
        assert np.abs(row - expected).max() <= 1e-4 * np.abs(expected).max()
