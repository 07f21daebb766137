"""Token ids -> text, one id at a time, never half a character."""

from __future__ import annotations

from codecs import utf_8_decode

from pocketlm.text.tokenizer import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A window this long with no end of a character in sight is noise: its old tokens are let go. The 16
# that stay settle what follows, because what a byte means depends on at most three before it.
MAX_WINDOW = 64
KEPT = 16
MAX_UNFINISHED = 3  # a character has up to four bytes, so one that lacks some shows as at most three


class Detokenizer:
    """The text of one generated sequence, as it becomes certain.

    What the pushes return, and then `flush`, joins to exactly `tokenizer.decode` of all ids.

    Exact for byte-level and SentencePiece tokenizers, with one exception: in those that spell bytes as
    tokens (Llama 2), a byte that is no UTF-8 turns the bytes right before it into replacements too,
    and what was returned already stays.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._way = _Bytes(tokenizer) if tokenizer.joins_bytes else _Window(tokenizer)

    def push(self, token_id: int) -> str:
        """The text that is now certain; "" while a character is incomplete."""
        return self._way.push(token_id)

    def flush(self) -> str:
        """What was held back, at the end of the sequence."""
        return self._way.flush()


class _Bytes:
    """Where a text is its tokens' bytes laid end to end: UTF-8, and what is none is replaced."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._unfinished = b""  # the beginning of a character

    def push(self, token_id: int) -> str:
        data = self._unfinished + self._tokenizer.text_bytes(token_id)
        text, num_used = utf_8_decode(data, "replace", False)
        self._unfinished = data[num_used:]
        return text

    def flush(self) -> str:
        return self._unfinished.decode(errors="replace")


class _Window:
    """For any tokenizer, where a token's text may depend on its neighbours.

    That is so for a byte of a character, or for a space that only the first word drops. A short window of
    the last tokens is decoded again on each push, and the new end of it returned.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._num_context = 0  # tokens at the window's start that are there as context alone
        self._num_shown = 0  # characters of the window's text that were returned

    def push(self, token_id: int) -> str:
        if not self._tokenizer.has_text(token_id):
            return ""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        num_unfinished = len(text) - len(text.rstrip(REPLACEMENT))
        is_noise = len(self._window) > MAX_WINDOW
        if is_noise:
            num_unfinished = min(num_unfinished, MAX_UNFINISHED)
        end = max(self._num_shown, len(text) - num_unfinished)
        piece = text[self._num_shown : end]
        self._num_shown = end
        if num_unfinished == 0:
            self._forget(self._num_context, num_held=0)
        elif is_noise:
            self._forget(len(self._window) - KEPT, num_held=len(text) - end)
        return piece

    def flush(self) -> str:
        return self._tokenizer.decode(self._window)[self._num_shown :]

    def _forget(self, num_tokens: int, num_held: int) -> None:
        """Drop the window's first tokens; the last `num_held` characters are still to be returned."""
        self._window = self._window[num_tokens:]
        self._num_context = len(self._window)
        self._num_shown = len(self._tokenizer.decode(self._window)) - num_held
