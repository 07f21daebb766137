from __future__ import annotations

import random

import pytest

from pocketlm.engine.prompt_lookup import LONGEST_MATCH, SHORTEST_MATCH, draft


def test_what_followed_the_last_tokens_before_is_the_guess() -> None:
    assert draft([1, 2, 3, 4, 5, 9, 1, 2, 3], 2) == [4, 5]
    assert draft([1, 2, 3, 4, 5, 9, 1, 2, 3], 4) == [4, 5, 9, 1]


def test_the_latest_place_wins() -> None:
    assert draft([1, 2, 3, 4, 9, 1, 2, 3, 5, 9, 1, 2, 3], 1) == [5]


def test_a_longer_match_wins_over_a_later_one() -> None:
    assert draft([1, 2, 3, 4, 9, 2, 3, 5, 9, 1, 2, 3], 1) == [4]


def test_a_shorter_match_is_better_than_none() -> None:
    assert draft([7, 2, 3, 5, 9, 1, 2, 3], 1) == [5]


def test_a_guess_that_reaches_the_end_goes_on_with_itself() -> None:
    assert draft([1, 2, 1, 2, 1], 5) == [2, 1, 2, 1, 2]
    assert draft([4, 4, 4], 3) == [4, 4, 4]


@pytest.mark.parametrize(
    "token_ids", [[], [1], [1, 2], [1, 1], [1, 2, 3, 4, 5], [1, 9, 1], [2, 3, 1, 3, 2, 1]]
)
def test_there_is_no_guess_where_nothing_repeats(token_ids: list[int]) -> None:
    """One token that stood there before is too little to go by."""
    assert draft(token_ids, 4) == []


@pytest.mark.parametrize("num_tokens", [0, -1])
def test_no_guess_is_asked_for(num_tokens: int) -> None:
    assert draft([1, 2, 1, 2], num_tokens) == []


def test_ids_that_are_no_characters_are_tokens_like_others() -> None:
    token_ids = [0, 0xD800, 0x10FFFF, 5]
    assert draft(token_ids * 2, 3) == token_ids[:3]


def written_out(token_ids: list[int], num_tokens: int) -> list[int]:
    """The same, token by token."""
    for length in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
        for start in range(len(token_ids) - length - 1, -1, -1):
            if token_ids[start : start + length] == token_ids[-length:]:
                guess = list(token_ids)
                for position in range(start + length, start + length + num_tokens):
                    guess.append(guess[position])
                return guess[len(token_ids) :]
    return []


def test_as_written_out() -> None:
    rng = random.Random(0)
    num_guesses = 0
    for _ in range(2000):
        token_ids = rng.choices(range(rng.choice([1, 2, 5, 20])), k=rng.randint(0, 40))
        num_tokens = rng.randint(1, 8)
        guess = draft(token_ids, num_tokens)
        assert guess == written_out(token_ids, num_tokens)
        num_guesses += bool(guess)
    assert 500 < num_guesses < 1900
