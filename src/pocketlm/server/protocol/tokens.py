"""The JSON of POST /tokenize and POST /detokenize."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pocketlm.errors import InvalidRequest
from pocketlm.loading import LoadedModel
from pocketlm.server.protocol.chat import ChatRequest, checked_messages, prompt_of
from pocketlm.server.protocol.fields import SERVING, Schema, body_schema
from pocketlm.server.protocol.reading import Limits, check, read


class TokenizeRequest:
    FIELDS: ClassVar[dict[str, Schema]] = {
        "prompt": {"type": "string", "description": "Text; this or messages.", "example": "Kubernetes is a"},
        "messages": {
            **ChatRequest.FIELDS["messages"],
            "description": "A conversation, made into a prompt as /v1/chat/completions does.",
        },
        "add_special_tokens": {
            "type": "boolean",
            "description": "With the special tokens that the tokenizer puts around a prompt; default true.",
        },
        "model": SERVING["model"],
    }
    SCHEMA = body_schema(
        FIELDS,
        required=[],
        examples=[{"prompt": "Kubernetes is a"}],
        oneOf=[
            {"required": [given], "properties": {given: {"not": {"type": "null"}}, other: {"type": "null"}}}
            for given, other in (("prompt", "messages"), ("messages", "prompt"))
        ],
    )
    RESPONSE: ClassVar[Schema] = {
        "type": "object",
        "required": ["tokens", "token_strings", "count", "max_model_len"],
        "properties": {
            "tokens": {"type": "array", "items": {"type": "integer"}},
            "token_strings": {
                "type": "array",
                "items": {"type": "string"},
                "description": "The text of each; bytes:\\xe2\\x80 where that is not whole characters.",
            },
            "count": {"type": "integer"},
            "max_model_len": {"type": "integer", "description": "The model's context window, in tokens."},
        },
        "additionalProperties": False,
    }

    def __init__(self, body: Mapping[str, Any], config: Limits) -> None:
        """Check every field, or raise InvalidRequest that names it."""
        values, self.asked = read(body, self.FIELDS, {}, lenient=config.lenient)
        if ("prompt" in values) == ("messages" in values):
            raise InvalidRequest("give either prompt or messages", param="prompt")
        if "messages" in values and "add_special_tokens" in values:
            raise InvalidRequest("add_special_tokens is for a prompt only", param="add_special_tokens")
        for name in ("prompt", "add_special_tokens"):
            if name in values:
                check(name, values[name], self.FIELDS[name])
        self._values = values
        if "messages" in values:
            self._messages, ignored = checked_messages(values["messages"], lenient=config.lenient)
            self.asked = replace(self.asked, ignored=(*self.asked.ignored, *ignored))

    def answer(self, model: LoadedModel) -> dict[str, Any]:
        if "messages" in self._values:
            tokens = prompt_of(model, self._messages)
        else:
            tokens = model.tokenizer.encode(
                self._values["prompt"], add_special_tokens=self._values.get("add_special_tokens", True)
            )
        return {
            "tokens": tokens,
            "token_strings": [model.tokenizer.token_string(token_id) for token_id in tokens],
            "count": len(tokens),
            "max_model_len": model.engine.max_model_len,
        }


class DetokenizeRequest:
    FIELDS: ClassVar[dict[str, Schema]] = {
        "tokens": {"type": "array", "items": {"type": "integer", "minimum": 0}, "description": "Token ids."},
        "model": SERVING["model"],
    }
    SCHEMA = body_schema(FIELDS, required=["tokens"], examples=[{"tokens": [1, 2, 3]}])
    RESPONSE: ClassVar[Schema] = {
        "type": "object",
        "required": ["prompt"],
        "properties": {"prompt": {"type": "string", "description": "Special tokens have no text."}},
        "additionalProperties": False,
    }

    def __init__(self, body: Mapping[str, Any], config: Limits) -> None:
        """Check every field, or raise InvalidRequest that names it."""
        values, self.asked = read(body, self.FIELDS, {}, lenient=config.lenient)
        tokens = values.get("tokens")
        if not isinstance(tokens, list):
            raise InvalidRequest(f"tokens must be a list of token ids, got {tokens!r:.60}", param="tokens")
        self._tokens = tokens

    def answer(self, model: LoadedModel) -> dict[str, Any]:
        vocab_size = model.tokenizer.vocab_size
        for token_id in self._tokens:
            if type(token_id) is not int or not 0 <= token_id < vocab_size:
                raise InvalidRequest(
                    f"tokens must be integers from 0 to {vocab_size - 1}, got {token_id!r:.60}",
                    param="tokens",
                )
        return {"prompt": model.tokenizer.decode(self._tokens)}
