"""The question whose answer is known: recorded without the engine, the same on every instruction set."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
from checkpoints import DEFAULTS, byte_tokenizer, draw_weights, write_checkpoint, write_weights
from driver import greedy

from pocketlm import kernels
from pocketlm.hub import BUNDLED
from pocketlm.kernels import Decoder
from pocketlm.known_answer import (
    BUNDLED_ANSWER,
    NUM_PROMPT_TOKENS,
    NUM_SURE_TOKENS,
    NUM_TOKENS,
    KnownAnswer,
    record,
)
from pocketlm.models import load_checkpoint
from pocketlm.text.tokenizer import Tokenizer


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(BUNDLED)


def decoder_of(folder: Path, dtype: str = "float32", isa: str | None = None) -> Decoder:
    checkpoint = load_checkpoint(folder)
    return kernels.create_decoder(
        checkpoint.spec, checkpoint.weights, dtype=dtype, num_threads=2, isa_name=isa
    )


def recorded(folder: Path, max_model_len: int = 64) -> KnownAnswer | None:
    return record("mine", decoder_of(folder), Tokenizer(byte_tokenizer()), max_model_len)


@pytest.mark.parametrize("isa", kernels.available_isas())
@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_the_bundled_model_gives_its_answer_in_every_format(isa: str, dtype: str) -> None:
    known = record("bundled", decoder_of(BUNDLED, dtype, isa), tokenizer(), 512)
    assert known is not None and known.failure is None
    assert known.token_ids == list(BUNDLED_ANSWER[: NUM_SURE_TOKENS[dtype]])
    assert tokenizer().decode(BUNDLED_ANSWER) == " point, the container is running on a"


@pytest.mark.parametrize("isa", kernels.available_isas())
@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_no_second_choice_comes_near_that_answer(isa: str, dtype: str) -> None:
    """So that it is not rounding that decides on a processor where this was never run."""
    known = record("bundled", decoder_of(BUNDLED), tokenizer(), 512)
    assert known is not None
    _, logits = greedy(decoder_of(BUNDLED, dtype, isa), known.prompt_token_ids, NUM_SURE_TOKENS[dtype])
    first_two = np.sort(logits, axis=1)[:, -2:]
    assert (first_two[:, 1] - first_two[:, 0]).min() > 0.2


def test_what_the_bundled_model_should_say_does_not_come_from_the_decoder(tmp_path: Path) -> None:
    """Another model in its place is found out when it is loaded."""
    folder = write_checkpoint(tmp_path / "model", seed=1, vocab_size=8192)
    known = record("bundled", decoder_of(folder), tokenizer(), 64)
    assert known is not None
    assert known.token_ids == list(BUNDLED_ANSWER)
    assert "it should answer [1287, 12," in str(known.failure)


def test_the_answer_of_another_model_is_its_greedy_continuation(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", seed=1)
    known = recorded(folder)
    assert known is not None and known.failure is None
    assert len(known.prompt_token_ids) == NUM_PROMPT_TOKENS
    expected, _ = greedy(decoder_of(folder), known.prompt_token_ids, NUM_TOKENS)
    assert known.token_ids == expected
    assert known.problem(expected) is None
    assert f"answers {expected[:-1]}, and it should answer {expected}" in str(known.problem(expected[:-1]))
    assert (known.params.temperature, known.params.max_tokens, known.params.ignore_eos) == (0, 8, True)


def test_equal_logits_are_decided_as_the_sampler_does(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", seed=1)
    zeros = {name: np.zeros_like(w) for name, w in draw_weights(DEFAULTS, seed=1, tied=True).items()}
    write_weights(folder, zeros, dtype="F32", shards=1)
    known = recorded(folder)
    assert known is not None and known.token_ids == [0] * NUM_TOKENS


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_logits_that_are_not_finite(tmp_path: Path, broken: float) -> None:
    folder = write_checkpoint(tmp_path / "model", seed=1)
    weights = draw_weights(DEFAULTS, seed=1, tied=True)
    weights["ln_f.weight"][0] = broken
    write_weights(folder, weights, dtype="F32", shards=1)
    known = recorded(folder)
    assert known is not None and known.token_ids is None
    assert "logits are not finite" in str(known.failure)


@pytest.mark.parametrize(("max_model_len", "num_tokens"), [(14, None), (15, 1), (21, 7), (22, 8), (64, 8)])
def test_a_context_with_little_room(tmp_path: Path, max_model_len: int, num_tokens: int | None) -> None:
    known = recorded(write_checkpoint(tmp_path / "model", seed=1), max_model_len)
    assert (known and known.params.max_tokens) == num_tokens
    assert (known and len(known.token_ids or [])) == num_tokens
