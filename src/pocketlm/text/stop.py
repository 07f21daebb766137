"""Stop strings, found across pieces of text and never shown."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Finds the stop string that is complete first; of several that end together, the longest.

    Text that may be the beginning of a stop string is held back until that is decided. Each string is
    matched one character at a time (Knuth, Morris and Pratt 1977), so the cost of a character does
    not depend on the strings' lengths, and the result does not depend on how the text was cut.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = list(stop)
        self._first_chars = frozenset(string[0] for string in stop)
        self._borders = [_borders(string) for string in stop]
        self._num_matched = [0] * len(stop)  # how much of each string the text so far ends with
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that is safe to show, and the stop string if one is complete: nothing comes after it."""
        if self._first_chars.isdisjoint(text) and not any(self._num_matched):
            return text, None
        for i, char in enumerate(text):
            self._match(char)
            pairs = zip(self._stop, self._num_matched, strict=True)
            found = max((string for string, n in pairs if n == len(string)), key=len, default=None)
            if found is not None:
                shown = (self._held + text[: i + 1]).removesuffix(found)
                self._held = ""
                return shown, found
        text = self._held + text
        end = len(text) - max(self._num_matched, default=0)
        self._held = text[end:]
        return text[:end], None

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _match(self, char: str) -> None:
        for i, string in enumerate(self._stop):
            n = self._num_matched[i]
            while n and string[n] != char:
                n = self._borders[i][n - 1]
            self._num_matched[i] = n + (string[n] == char)


def _borders(string: str) -> list[int]:
    """For each prefix, the length of its longest proper suffix that is also its prefix."""
    borders, n = [0], 0
    for char in string[1:]:
        while n and string[n] != char:
            n = borders[n - 1]
        n += string[n] == char
        borders.append(n)
    return borders
