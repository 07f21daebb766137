"""CachedAnswer: the answer to one prompt as bytes, and the keys under which it is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields

from pydantic import TypeAdapter, ValidationError

import pocketlm
from pocketlm.outputs import RequestOutput
from pocketlm.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """What is kept under one key. It says which key, so that it is not believed under another one."""

    key: str
    output: RequestOutput
    request_digest: str | None = None  # of the request that an idempotency key stands for

    def to_bytes(self) -> bytes:
        return _FORMAT.dump_json(self)

    @classmethod
    def from_bytes(cls, key: str, value: bytes) -> CachedAnswer | None:
        """None if the value is damaged, of another format or of another key."""
        try:
            answer = _FORMAT.validate_json(value)
        except ValidationError:
            return None
        return answer if answer.key == key else None


_FORMAT = TypeAdapter(CachedAnswer)  # checks the type of every field on the way in

_FLOATS = frozenset(field.name for field in fields(SamplingParams) if field.type == "float")


def key_of(
    fingerprint: str,
    prompt: str,
    prompt_token_ids: list[int],
    params: SamplingParams,
    max_model_len: int,
) -> str:
    """The key of everything that the answer to one prompt depends on.

    The prompt's text, as an answer quotes it, is in it beside its ids, because two texts may have the
    same ids. So is every field of `params`, also one that is added later; `max_tokens` and
    `max_length` are in it as what they come to together.
    """
    effective = {
        field.name: _canonical(field.name, getattr(params, field.name))
        for field in fields(params)
        if field.name not in ("max_tokens", "max_length")
    }
    num_new_tokens = params.num_new_tokens(len(prompt_token_ids), max_model_len)
    version = pocketlm.__version__  # another version may compute other tokens from the same weights
    return _digest("answer", version, fingerprint, prompt, prompt_token_ids, num_new_tokens, effective)


def idempotency_key_of(owner: str, header_value: str, prompt_index: int) -> str:
    """The key of one prompt of a request with an Idempotency-Key. Owners do not see each other's."""
    return _digest("idempotency", owner, header_value, prompt_index)


def _canonical(name: str, value: object) -> object:
    """One form for values that mean the same: 0 and 0.0, a list and a tuple, a mapping in any order."""
    if name in _FLOATS and isinstance(value, int):
        return float(value)
    if isinstance(value, Mapping):
        return sorted((key, float(number)) for key, number in value.items())
    return value


def _digest(*parts: object) -> str:
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()
