"""Answers as bytes, and keys that differ exactly where answers may."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from pocketlm.outputs import Completion, FinishReason, Logprob, RequestOutput
from pocketlm.sampling import MAX_SEED, SamplingParams
from pocketlm.server.cached_answer import CachedAnswer, idempotency_key_of, key_of

PARAMS = SamplingParams(max_tokens=5)
# One other value for every field: the test fails until a new field has its own here.
OTHER_VALUES: dict[str, Any] = {
    "max_tokens": 6,
    "max_length": 4,
    "min_tokens": 1,
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.5,
    "repetition_penalty": 1.5,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "logit_bias": {3: 1.0},
    "seed": 1,
    "n": 2,
    "stop": ("x",),
    "stop_token_ids": (3,),
    "ignore_eos": True,
    "logprobs": 0,
    "prompt_logprobs": 0,
}


def key(params: SamplingParams = PARAMS, **changes: Any) -> str:
    about: dict[str, Any] = {"prompt": "ab", "prompt_token_ids": [1, 2], "max_model_len": 100}
    return key_of(**{"fingerprint": "f", **about, "params": params, **changes})


def output(**changes: Any) -> RequestOutput:
    completion = Completion(
        index=0,
        text="täxt \N{SNOWMAN}\x00\ufffd",
        token_ids=[5, 50256],
        seed=MAX_SEED,
        finish_reason=FinishReason.STOP,
        logprobs=[
            {5: Logprob(-0.1, 1, "é"), 2: Logprob(-1 / 3, 3, "\ufffd")},
            {50256: Logprob(-80.5, 9, "")},
        ],
    )
    second = Completion(index=1, text="", token_ids=[], seed=0, finish_reason=FinishReason.LENGTH)
    return replace(
        RequestOutput("prompt", [1, 2], [completion, second], [None, {2: Logprob(-1.1e-7, 1, "x")}]),
        **changes,
    )


def test_an_answer_comes_back_equal() -> None:
    answer = CachedAnswer("k", output(), "digest")
    back = CachedAnswer.from_bytes("k", answer.to_bytes())
    assert back == answer
    completion = back.output.outputs[0]
    assert completion.finish_reason is FinishReason.STOP
    assert completion.logprobs is not None and list(completion.logprobs[0]) == [5, 2]  # the order is kept


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\x00",
        b"null",
        b"{}",
        b'"text"',
        CachedAnswer("k", output()).to_bytes()[:-1],
        CachedAnswer("k", output()).to_bytes().replace(b'"stop"', b'"other"'),
        CachedAnswer("k", output()).to_bytes().replace(b"[5,50256]", b'["a"]'),
        CachedAnswer("another key", output()).to_bytes(),
    ],
)
def test_what_it_did_not_write_is_not_an_answer(value: bytes) -> None:
    assert CachedAnswer.from_bytes("k", value) is None


@pytest.mark.parametrize("name", [field.name for field in fields(SamplingParams)])
def test_every_field_of_the_parameters_is_in_the_key(name: str) -> None:
    assert key(replace(PARAMS, **{name: OTHER_VALUES[name]})) != key()


def test_everything_else_an_answer_depends_on_is_in_the_key() -> None:
    keys = [
        key(),
        key(fingerprint="g"),
        key(prompt="Ab"),  # a tokenizer may give two texts the same ids; an answer quotes its own
        key(prompt_token_ids=[2, 1]),
        key(prompt_token_ids=[12]),
        key(replace(PARAMS, max_tokens=200)),
        key(replace(PARAMS, max_tokens=200), max_model_len=101),
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"stop_token_ids": [1]}, {"stop_token_ids": (1,)}),
        ({"logit_bias": {1: 1, 2: 2}}, {"logit_bias": {2: 2.0, 1: 1.0}}),
        ({"max_tokens": 98}, {"max_tokens": 5000}),  # the context window has room for 98
        ({"max_length": 7}, {"max_tokens": 5}),
    ],
)
def test_parameters_that_mean_the_same_have_one_key(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert key(SamplingParams(**one)) == key(SamplingParams(**other))


def test_seeds_that_a_float_cannot_tell_apart_have_two_keys() -> None:
    assert key(SamplingParams(seed=MAX_SEED)) != key(SamplingParams(seed=MAX_SEED - 1))


def test_a_stop_string_that_is_not_text_has_a_key() -> None:
    assert key(SamplingParams(stop="\ud800")) != key(SamplingParams(stop="\ud801"))


def test_an_idempotency_key_is_its_owners_alone() -> None:
    keys = [
        idempotency_key_of("ann", "1", 0),
        idempotency_key_of("bob", "1", 0),
        idempotency_key_of("ann", "2", 0),
        idempotency_key_of("ann", "1", 1),
        idempotency_key_of("ann1", "", 0),
    ]
    assert len(set(keys)) == len(keys)
