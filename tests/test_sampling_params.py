"""SamplingParams: what is accepted, and what is said of the rest."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.errors import ContextLengthExceeded, InvalidRequest
from pocketlm.sampling import SamplingParams

WRONG: list[tuple[str, Any]] = [
    *[("max_tokens", value) for value in (-1, 1.0, "5", True, math.nan)],
    *[("max_length", value) for value in (0, -1, 50.5, "50", True)],
    *[("min_tokens", value) for value in (-1, "1", None)],
    *[("temperature", value) for value in (-0.1, 2.1, math.nan, math.inf, "hot", True, None)],
    *[("top_k", value) for value in (-1, 1.5, "5")],
    *[("top_p", value) for value in (0, -0.1, 1.1, math.nan)],
    *[("min_p", value) for value in (-0.1, 1.1)],
    *[("repetition_penalty", value) for value in (0, -1, 10.1, math.inf)],
    *[("presence_penalty", value) for value in (-2.1, 2.1)],
    *[("frequency_penalty", value) for value in (-2.1, 2.1)],
    *[("seed", value) for value in (-1, 2**64, 1.0, "7", 10**1000)],
    *[("n", value) for value in (0, 129, 1.0)],
    *[("stop", value) for value in ("", [""], [5], ["x"] * 10_000, ["x" * 257], 5, None)],
    *[("stop_token_ids", value) for value in ([-1], ["1"], 5, [1] * 65)],
    *[("logit_bias", value) for value in ([1], {-1: 0}, {"1": 0}, {1: 101}, {1: math.nan}, {1: "x"})],
    *[("logit_bias", dict.fromkeys(range(1025), 0))],
    *[("ignore_eos", value) for value in (1, "yes", None)],
    *[("logprobs", value) for value in (-1, 21, 1.5)],
    *[("prompt_logprobs", value) for value in (-1, 21, 1.5, True)],
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{n}-{i}" for i, (n, _) in enumerate(WRONG)])
def test_a_wrong_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name
    assert len(str(caught.value)) < 200  # a huge value does not make a huge message


def test_every_field_has_a_wrong_value_above() -> None:
    assert {name for name, _ in WRONG} == {field.name for field in fields(SamplingParams)}


def test_bounds_are_named() -> None:
    with pytest.raises(InvalidRequest, match=r"between 0\.0 and 2\.0, got 2\.1"):
        SamplingParams(temperature=2.1)
    with pytest.raises(InvalidRequest, match="at most 16 entries, got 10000"):
        SamplingParams(stop=["x"] * 10_000)


def test_min_tokens_must_fit_in_max_tokens() -> None:
    SamplingParams(min_tokens=5, max_tokens=5)
    with pytest.raises(InvalidRequest, match="min_tokens"):
        SamplingParams(min_tokens=6, max_tokens=5)
    with pytest.raises(InvalidRequest, match="min_tokens"):
        SamplingParams(min_tokens=1, max_tokens=0)


def test_one_stop_string_may_stand_alone() -> None:
    assert list(SamplingParams(stop="END").stop) == ["END"]


def test_token_ids_are_checked_against_the_vocabulary() -> None:
    SamplingParams(stop_token_ids=[9], logit_bias={9: 1.0}).check_vocabulary(10)
    with pytest.raises(InvalidRequest, match=r"stop_token_ids has token id 10; .* 0 to 9"):
        SamplingParams(stop_token_ids=[10]).check_vocabulary(10)
    with pytest.raises(InvalidRequest, match="logit_bias has token id 10"):
        SamplingParams(logit_bias={10: 1.0}).check_vocabulary(10)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, 16),
        ({"max_tokens": 5}, 5),
        ({"max_length": 50}, 40),
        ({"max_length": 50, "max_tokens": 5}, 5),
        ({"max_length": 12, "max_tokens": 5}, 2),
        ({"max_length": 1000}, 90),
        ({"max_tokens": 1000}, 90),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": 0, "max_length": 10}, 0),
    ],
)
def test_the_smallest_bound_decides_how_many_tokens(params: dict[str, int], expected: int) -> None:
    assert SamplingParams(**params).num_new_tokens(10, max_model_len=100) == expected  # type: ignore[arg-type]


@given(
    num_prompt_tokens=st.integers(1, 60),
    max_model_len=st.integers(1, 60),
    max_length=st.none() | st.integers(1, 80),
    max_tokens=st.none() | st.integers(0, 80),
)
def test_there_is_room_for_what_is_asked_or_an_error(
    num_prompt_tokens: int, max_model_len: int, max_length: int | None, max_tokens: int | None
) -> None:
    params = SamplingParams(max_length=max_length, max_tokens=max_tokens)
    try:
        num_new = params.num_new_tokens(num_prompt_tokens, max_model_len)
    except ContextLengthExceeded as error:
        least = 0 if max_tokens == 0 else 1
        assert num_prompt_tokens + least > min(max_model_len, max_length or max_model_len)
        assert str(num_prompt_tokens) in str(error)
    else:
        assert (num_new == 0) == (max_tokens == 0)
        assert 0 <= num_new <= max_model_len - num_prompt_tokens
        assert max_length is None or num_prompt_tokens + num_new <= max_length
        assert max_tokens is None or num_new <= max_tokens
