"""Log-probabilities in the forms of /v1/completions and of /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pocketlm.outputs import Logprob
from pocketlm.server.protocol.fields import Schema
from pocketlm.text.tokenizer import Tokenizer

Entries = Sequence["dict[int, Logprob] | None"]  # one a token; None where nothing predicts it


class TextOffsets:
    """Where in a text its tokens begin, in characters; a token inside a character, where that begins."""

    def __init__(self, tokenizer: Tokenizer, start: int) -> None:
        self._tokenizer = tokenizer
        self._num_chars = start

    def next(self, token_id: int) -> int:
        text = self._tokenizer.token_bytes(token_id) if self._tokenizer.has_text(token_id) else b""
        first_bytes = [byte & 0xC0 != 0x80 for byte in text]  # of a character, in UTF-8
        begins_inside = bool(first_bytes) and not first_bytes[0] and self._num_chars > 0
        offset = self._num_chars - begins_inside
        self._num_chars += sum(first_bytes)
        return offset


def completion_logprobs(
    tokenizer: Tokenizer, token_ids: Iterable[int], entries: Entries, offsets: TextOffsets
) -> dict[str, list[Any]]:
    """Four lists of one entry a token."""
    shown: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token_id, entry in zip(token_ids, entries, strict=True):
        shown["tokens"].append(tokenizer.token_string(token_id))
        shown["token_logprobs"].append(None if entry is None else entry[token_id].logprob)
        shown["top_logprobs"].append(None if entry is None else _by_name(tokenizer, token_id, entry))
        shown["text_offset"].append(offsets.next(token_id))
    return shown


def _by_name(tokenizer: Tokenizer, token_id: int, entry: dict[int, Logprob]) -> dict[str, float]:
    """The token itself and the most likely ones. Of two with the same name, the second goes by its id."""
    shown = {tokenizer.token_string(token_id): entry[token_id].logprob}
    for other_id, other in entry.items():
        if other_id != token_id:
            name = tokenizer.token_string(other_id)
            shown[f"token_id:{other_id}" if name in shown else name] = other.logprob
    return shown


def chat_logprobs(
    tokenizer: Tokenizer, token_ids: Iterable[int], entries: Entries, num_top: int
) -> list[dict[str, Any]]:
    """One object a token, with the `num_top` most likely ones."""
    shown = []
    for token_id, entry in zip(token_ids, entries, strict=True):
        assert entry is not None, "every token of an answer is predicted"
        top = sorted((other.rank, other_id) for other_id, other in entry.items() if other.rank <= num_top)
        shown.append(
            {
                **_named(tokenizer, token_id, entry),
                "top_logprobs": [_named(tokenizer, other_id, entry) for _, other_id in top[:num_top]],
            }
        )
    return shown


def _named(tokenizer: Tokenizer, token_id: int, entry: dict[int, Logprob]) -> dict[str, Any]:
    return {
        "token": tokenizer.token_string(token_id),
        "logprob": entry[token_id].logprob,
        "bytes": list(tokenizer.token_bytes(token_id)),
    }


COMPLETION_LOGPROBS: Schema = {
    "type": ["object", "null"],
    "description": "If logprobs was given: one entry a token, of the prompt's too if echo was given.",
    "required": ["tokens", "token_logprobs", "top_logprobs", "text_offset"],
    "properties": {
        "tokens": {"type": "array", "items": {"type": "string"}},
        "token_logprobs": {"type": "array", "items": {"type": ["number", "null"]}},
        "top_logprobs": {
            "type": "array",
            "items": {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
        },
        "text_offset": {"type": "array", "items": {"type": "integer"}},
    },
}

_TOKEN = {
    "token": {"type": "string"},
    "logprob": {"type": "number"},
    "bytes": {"type": "array", "items": {"type": "integer"}},
}

CHAT_LOGPROBS: Schema = {
    "type": ["object", "null"],
    "description": "If logprobs was given.",
    "required": ["content"],
    "properties": {
        "content": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [*_TOKEN, "top_logprobs"],
                "properties": {
                    **_TOKEN,
                    "top_logprobs": {
                        "type": "array",
                        "items": {"type": "object", "required": [*_TOKEN], "properties": _TOKEN},
                    },
                },
            },
        },
        "refusal": {"type": "null"},
    },
}
