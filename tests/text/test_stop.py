from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.text.stop import StopStrings


def search(text: str, stop: list[str]) -> tuple[str, str | None]:
    """The definition, on the whole text: of the matches that end first, the longest."""
    for end in range(1, len(text) + 1):
        found = max((string for string in stop if text[:end].endswith(string)), key=len, default=None)
        if found is not None:
            return text[: end - len(found)], found
    return text, None


def run(pieces: list[str], stop: list[str]) -> tuple[str, str | None]:
    stopper = StopStrings(stop)
    shown = ""
    for piece in pieces:
        safe, found = stopper.push(piece)
        shown += safe
        if found is not None:
            assert stopper.flush() == ""
            return shown, found
    return shown + stopper.flush(), None


def split(text: str, cuts: list[int]) -> list[str]:
    edges = [0, *sorted(cut for cut in cuts if cut <= len(text)), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


STRINGS = st.lists(st.text("ab\u00e9", min_size=1, max_size=7), max_size=4)


@given(st.text("ab\u00e9", max_size=30), STRINGS, st.lists(st.integers(0, 30)))
def test_the_same_as_a_search_of_the_whole_text(text: str, stop: list[str], cuts: list[int]) -> None:
    assert run(split(text, cuts), stop) == search(text, stop)


@given(st.text("ab", max_size=9), STRINGS)
def test_under_all_splits(text: str, stop: list[str]) -> None:
    expected = search(text, stop)
    for cuts in itertools.product([False, True], repeat=max(0, len(text) - 1)):
        pieces = split(text, [i + 1 for i, cut in enumerate(cuts) if cut])
        assert run(pieces, stop) == expected


@given(st.text("ab", max_size=30), STRINGS)
def test_nothing_is_held_back_without_need(text: str, stop: list[str]) -> None:
    """What is not shown is always the beginning of a stop string."""
    stopper = StopStrings(stop)
    seen = shown = ""
    for char in text:
        seen += char
        safe, found = stopper.push(char)
        if found is not None:
            return
        shown += safe
        held = seen.removeprefix(shown)
        assert seen == shown + held
        assert held == "" or any(string.startswith(held) for string in stop)


def test_a_stop_string_across_pieces_never_shows() -> None:
    stopper = StopStrings(["\n\nUser:"])
    assert stopper.push("Hello.\n") == ("Hello.", None)
    assert stopper.push("\nUs") == ("", None)
    assert stopper.push("er: next") == ("", "\n\nUser:")


def test_a_beginning_that_came_to_nothing_is_shown() -> None:
    stopper = StopStrings(["stop"])
    assert stopper.push("sto") == ("", None)
    assert stopper.push("ne") == ("stone", None)
    assert stopper.push("st") == ("", None)
    assert stopper.flush() == "st"


@pytest.mark.parametrize(
    ("stop", "text", "expected"),
    [
        (["b", "ab"], "xab", ("x", "ab")),  # they end together: the longest
        (["abcd", "bc"], "xabcd", ("xa", "bc")),  # complete first
        (["ab", "abc"], "xabc", ("x", "ab")),
        (["aab"], "aaab", ("a", "aab")),  # begins inside a beginning
        (["aabaaac"], "aabaaabaaac", ("aaba", "aabaaac")),  # and that in another
        ([], "text", ("text", None)),
    ],
)
def test_which_one_wins(stop: list[str], text: str, expected: tuple[str, str | None]) -> None:
    assert run([text], stop) == expected
    assert run(list(text), stop) == expected


def test_long_text_and_long_strings() -> None:
    """One pass: 16 strings of 256 characters that all but match, over a long text, take no time."""
    stop = ["a" * 255 + chr(ord("b") + i) for i in range(16)]
    text = "a" * 20_000
    assert run([text[i : i + 4] for i in range(0, len(text), 4)], stop) == (text, None)
