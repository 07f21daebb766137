"""Sampling: the compiled sampler equals the NumPy one, and both do what the parameters say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from random_model import random_spec, random_weights

from pocketlm import kernels
from pocketlm.kernels.inputs import SamplingInputs, SamplingOutputs

VOCAB = 301


@pytest.fixture(params=kernels.available_isas(), scope="module")
def decoder(request: pytest.FixtureRequest) -> kernels.Decoder:
    spec = random_spec(vocab_size=VOCAB)
    return kernels.create_decoder(
        spec, random_weights(spec), dtype="float32", num_threads=2, isa_name=request.param
    )


def sampling_inputs(num_rows: int, **changes: Any) -> SamplingInputs:
    """Plain sampling for each row; `changes` are scalars, lists of one a row, or lists of lists if ragged."""

    def column(name: str, default: Any, dtype: type) -> Any:
        return np.broadcast_to(np.array(changes.pop(name, default), dtype), num_rows).copy()

    def ragged(name: str, dtype: type = np.int32) -> Any:
        rows = changes.pop(name, [[]] * num_rows)
        starts = np.cumsum([0, *map(len, rows)]).astype(np.int32)
        return np.array([value for row in rows for value in row], dtype), starts

    history, history_starts = ragged("history")
    bias_ids, bias_starts = ragged("bias_ids")
    bias_values, _ = ragged("bias_values", np.float32)
    banned_ids, banned_starts = ragged("banned_ids")
    inputs = SamplingInputs(
        temperature=column("temperature", 1.0, np.float32),
        top_k=column("top_k", 0, np.int32),
        top_p=column("top_p", 1.0, np.float32),
        min_p=column("min_p", 0.0, np.float32),
        repetition_penalty=column("repetition_penalty", 1.0, np.float32),
        presence_penalty=column("presence_penalty", 0.0, np.float32),
        frequency_penalty=column("frequency_penalty", 0.0, np.float32),
        seed=column("seed", np.arange(num_rows), np.uint64),
        position=column("position", 7, np.int32),
        history=history,
        history_starts=history_starts,
        num_prompt_tokens=column("num_prompt_tokens", 0, np.int32),
        bias_ids=bias_ids,
        bias_values=bias_values,
        bias_starts=bias_starts,
        banned_ids=banned_ids,
        banned_starts=banned_starts,
        num_logprobs=column("num_logprobs", -1, np.int32),
    )
    assert not changes
    return inputs


def logits_of(num_rows: int, seed: int = 0, scale: float = 2.0) -> Any:
    return (np.random.default_rng(seed).standard_normal((num_rows, VOCAB)) * scale).astype(np.float32)


def reference_sample(logits: Any, inputs: SamplingInputs) -> SamplingOutputs:
    return kernels.reference.sample(logits, inputs)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.3},
        {"temperature": 2.0},
        {"top_k": 1},
        {"top_k": 50},
        {"top_k": VOCAB + 5},
        {"top_p": 0.9},
        {"top_p": 0.01},
        {"top_p": 0.999999},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"temperature": 0.7, "top_k": 40, "top_p": 0.8, "min_p": 0.02},
        {"history": [[1, 2, 2, 300]] * 64, "num_prompt_tokens": 2, "repetition_penalty": 1.3},
        {"history": [[5, 5, 7]] * 64, "presence_penalty": 1.5, "frequency_penalty": -0.5},
        {"bias_ids": [[3, 9]] * 64, "bias_values": [[100.0, -100.0]] * 64},
        {"banned_ids": [list(range(1, VOCAB))] * 64},
    ],
    ids=str,
)
def test_equals_the_reference(decoder: kernels.Decoder, changes: dict[str, Any]) -> None:
    logits = logits_of(64)
    inputs = sampling_inputs(64, num_logprobs=3, **changes)
    outputs, expected = decoder.sample(logits, inputs), reference_sample(logits, inputs)
    assert outputs.token_ids.tolist() == expected.token_ids.tolist()
    assert outputs.logprob_ids.tolist() == expected.logprob_ids.tolist()
    assert outputs.ranks.tolist() == expected.ranks.tolist()
    np.testing.assert_allclose(outputs.logprobs, expected.logprobs, atol=1e-5)


@pytest.mark.parametrize("scale", [0.5, 8.0])
@pytest.mark.parametrize("isa", kernels.COMPILED_ISAS)
def test_a_large_vocabulary_equals_the_reference(isa: str, scale: float) -> None:
    """Nearly level and steep rows: the nucleus is most of the vocabulary, or a few tokens of it."""
    spec = random_spec(vocab_size=5003)
    decoder = kernels.create_decoder(spec, random_weights(spec), dtype="float32", num_threads=2, isa_name=isa)
    logits = (np.random.default_rng(3).standard_normal((32, 5003)) * scale).astype(np.float32)
    for changes in (
        {},
        {"top_k": 40},
        {"top_k": 3000},
        {"top_p": 0.1},
        {"top_p": 0.95},
        {"top_k": 900, "top_p": 0.5},
    ):
        inputs = sampling_inputs(32, temperature=0.9, num_logprobs=20, **changes)
        outputs, expected = decoder.sample(logits, inputs), reference_sample(logits, inputs)
        assert outputs.token_ids.tolist() == expected.token_ids.tolist(), changes
        assert outputs.logprob_ids.tolist() == expected.logprob_ids.tolist()
        assert outputs.ranks.tolist() == expected.ranks.tolist()
        np.testing.assert_allclose(outputs.logprobs, expected.logprobs, rtol=0, atol=1e-5)


def test_the_random_number_is_numpys_philox(decoder: kernels.Decoder) -> None:
    """Over equal logits the token is the random number itself, in units of 1 / V."""
    seeds = [0, 1, 2**63, 2**64 - 1]
    inputs = sampling_inputs(4, seed=seeds, position=[0, 1, 2, 2**31 - 1])
    token_ids = decoder.sample(np.zeros((4, VOCAB), np.float32), inputs).token_ids
    for token_id, seed, position in zip(token_ids, seeds, inputs.position, strict=True):
        generator = np.random.Generator(np.random.Philox(key=seed, counter=int(position)))
        assert token_id == int(generator.random() * VOCAB)


def test_draws_follow_the_probabilities(decoder: kernels.Decoder) -> None:
    """2,000 or 20,000 draws: each frequency within 5 standard deviations of its probability."""
    num_draws = 2_000 if isinstance(decoder, kernels.reference.Decoder) else 20_000
    logits = np.full((1, VOCAB), -np.inf, np.float32)
    logits[0, :VOCAB] = -30
    logits[0, [3, 50, 200]] = np.log([0.5, 0.3, 0.2])
    inputs = sampling_inputs(num_draws, seed=11, position=np.arange(num_draws))
    token_ids = decoder.sample(np.repeat(logits, num_draws, axis=0), inputs).token_ids
    for token_id, probability in ((3, 0.5), (50, 0.3), (200, 0.2)):
        share = float((token_ids == token_id).mean())
        assert abs(share - probability) < 5 * (probability * (1 - probability) / num_draws) ** 0.5


def test_filters_keep_what_they_say(decoder: kernels.Decoder) -> None:
    logits = np.full((200, VOCAB), -30, np.float32)
    logits[:, [3, 50, 200, 201]] = np.log([0.4, 0.3, 0.2, 0.1])
    draws = {
        name: set(decoder.sample(logits, sampling_inputs(200, **{name: value})).token_ids.tolist())
        for name, value in (("top_k", 2), ("top_p", 0.6), ("min_p", 0.45))
    }
    assert draws == {"top_k": {3, 50}, "top_p": {3, 50}, "min_p": {3, 50, 200}}


def test_equal_logits_are_kept_together(decoder: kernels.Decoder) -> None:
    logits = np.zeros((400, VOCAB), np.float32)
    logits[:, :3] = 20.0
    token_ids = decoder.sample(logits, sampling_inputs(400, top_k=1)).token_ids
    assert set(token_ids.tolist()) == {0, 1, 2}
    assert decoder.sample(logits[:1], sampling_inputs(1, temperature=0.0)).token_ids[0] == 0


def test_a_row_alone_is_a_row_among_others(decoder: kernels.Decoder) -> None:
    logits = logits_of(16)
    together = decoder.sample(logits, sampling_inputs(16, temperature=0.8, top_p=0.9)).token_ids
    for r in range(16):
        alone = sampling_inputs(1, temperature=0.8, top_p=0.9, seed=r)
        assert decoder.sample(logits[r : r + 1], alone).token_ids[0] == together[r]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 150, VOCAB - 1])
def test_a_row_that_is_not_finite_is_not_sampled(decoder: kernels.Decoder, poison: float, place: int) -> None:
    logits = logits_of(3)
    logits[1, place] = poison
    token_ids = decoder.sample(logits, sampling_inputs(3, num_logprobs=2)).token_ids
    assert token_ids[1] == -1
    assert min(token_ids[0], token_ids[2]) >= 0


@pytest.mark.parametrize(
    "changes",
    [
        {"history": [[VOCAB]]},
        {"history": [[-1]]},
        {"bias_ids": [[VOCAB]], "bias_values": [[0.0]]},
        {"banned_ids": [[-1]]},
        {"history": [[1]], "num_prompt_tokens": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("isa", kernels.available_isas()[:-1])
def test_bad_indices_are_refused(isa: str, changes: dict[str, Any]) -> None:
    spec = random_spec(vocab_size=VOCAB)
    decoder = kernels.create_decoder(spec, random_weights(spec), dtype="float32", num_threads=1, isa_name=isa)
    with pytest.raises(ValueError):
        decoder.sample(logits_of(1), sampling_inputs(1, **changes))


# Log-probabilities of given tokens.


def given_tokens(num_rows: int, **changes: Any) -> tuple[Any, Any]:
    """A token a row, and how many of the most likely to report: from none to more than there are."""
    num_logprobs = np.arange(num_rows, dtype=np.int32) * 3 % 25
    token_ids = np.arange(num_rows, dtype=np.int32) * 37 % VOCAB
    for name, value in changes.items():
        {"token_ids": token_ids, "num_logprobs": num_logprobs}[name][0] = value
    return token_ids, num_logprobs


def test_log_probabilities_equal_the_reference(decoder: kernels.Decoder) -> None:
    logits = logits_of(64)
    logits[5] = np.round(logits[5])  # many equal ones
    token_ids, num_logprobs = given_tokens(64)
    outputs = decoder.log_probabilities(logits, token_ids, num_logprobs)
    expected = kernels.reference.report(logits, token_ids, num_logprobs)
    np.testing.assert_array_equal(outputs.logprob_ids, expected.logprob_ids)
    np.testing.assert_array_equal(outputs.ranks, expected.ranks)
    np.testing.assert_allclose(outputs.logprobs, expected.logprobs, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(outputs.logprob_ids[:, 0], token_ids)
    np.testing.assert_array_equal((outputs.logprob_ids >= 0).sum(axis=1), num_logprobs + 1)


def test_a_given_token_has_the_log_probability_of_a_drawn_one(decoder: kernels.Decoder) -> None:
    logits = logits_of(16)
    drawn = decoder.sample(logits, sampling_inputs(16, num_logprobs=4))
    given = decoder.log_probabilities(logits, drawn.token_ids, np.full(16, 4, np.int32))
    np.testing.assert_array_equal(given.logprob_ids, drawn.logprob_ids)
    np.testing.assert_array_equal(given.logprobs, drawn.logprobs)
    np.testing.assert_array_equal(given.ranks, drawn.ranks)


def test_log_probabilities_of_a_row_alone_are_those_among_others(decoder: kernels.Decoder) -> None:
    logits = logits_of(16)
    token_ids, num_logprobs = given_tokens(16)
    together = decoder.log_probabilities(logits, token_ids, num_logprobs)
    for r in range(16):
        alone = decoder.log_probabilities(logits[r : r + 1], token_ids[r : r + 1], num_logprobs[r : r + 1])
        for one, all_rows in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], all_rows[r, : num_logprobs[r] + 1])


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_has_no_log_probabilities(decoder: kernels.Decoder, poison: float) -> None:
    logits = logits_of(3)
    logits[1, 200] = poison
    outputs = decoder.log_probabilities(logits, *given_tokens(3))
    assert (outputs.logprob_ids[:, 0] >= 0).tolist() == [True, False, True]
    assert (outputs.logprob_ids[1] == -1).all()


@pytest.mark.parametrize("isa", kernels.COMPILED_ISAS[:1])
@pytest.mark.parametrize("changes", [{"token_ids": VOCAB}, {"token_ids": -1}, {"num_logprobs": -1}])
def test_bad_tokens_are_refused(isa: str, changes: dict[str, int]) -> None:
    spec = random_spec(vocab_size=VOCAB)
    decoder = kernels.create_decoder(spec, random_weights(spec), dtype="float32", num_threads=1, isa_name=isa)
    with pytest.raises(ValueError):
        decoder.log_probabilities(logits_of(2), *given_tokens(2, **changes))
    token_ids, num_logprobs = given_tokens(2)
    with pytest.raises(ValueError):
        decoder.log_probabilities(logits_of(3), token_ids, num_logprobs)
