"""OpenAIRequest: what /v1/completions and /v1/chat/completions have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar

from pocketlm.errors import InvalidRequest
from pocketlm.generation import Piece
from pocketlm.outputs import Completion, RequestOutput
from pocketlm.sampling import SamplingParams
from pocketlm.server.protocol.api_request import ApiRequest
from pocketlm.server.protocol.asked import Asked
from pocketlm.server.protocol.fields import SAMPLING, SERVING, Schema, object_schema
from pocketlm.server.protocol.parameters import shown_parameters
from pocketlm.server.protocol.reading import Limits, check, check_integer, unknown_inside
from pocketlm.server.protocol.result import TIMING, Head, Result
from pocketlm.text.tokenizer import Tokenizer

SHOWN = ("max_tokens", "temperature", "top_p")

INCLUDE_USAGE: Schema = {
    "type": "boolean",
    "description": "End the stream with an event that has the usage; default false.",
}

OPENAI_FIELDS: dict[str, Schema] = {
    **SAMPLING,
    "temperature": {**SAMPLING["temperature"], "description": "0 is greedy; default 1."},
    "n": {"type": "integer", "minimum": 1, "description": "Answers to each prompt; default 1."},
    **SERVING,
    "stream_options": {
        "type": "object",
        "properties": {"include_usage": INCLUDE_USAGE},
        "additionalProperties": False,
        "description": "Only with stream.",
    },
}


class OpenAIRequest(ApiRequest):
    """A subclass sets `params`, and `_tokenizer` in `prepare`."""

    OBJECT: ClassVar[str]  # of a whole answer
    CHUNK_OBJECT: ClassVar[str]  # of an event

    params: SamplingParams
    _tokenizer: Tokenizer

    def __init__(self, values: dict[str, Any], asked: Asked, limits: Limits) -> None:
        self.asked = _with_stream_options(asked, values.pop("stream_options", None), limits.lenient)
        self.n = check_integer("n", values.pop("n", 1), 1, limits.max_n)

    @abstractmethod
    def _choice(self, index: int, output: RequestOutput, piece: Piece) -> dict[str, Any]:
        """An entry of `choices` in an answer, without its finish_reason and seed."""

    @abstractmethod
    def _chunk_choice(self, index: int, output: RequestOutput, piece: Piece) -> dict[str, Any]:
        """The same in an event, for what was added to choice `index` of the answer."""

    def _completions(self, output: RequestOutput) -> list[Completion]:
        """Those of one prompt that are shown."""
        return output.outputs

    def whole(self, result: Result) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        for output in result.outputs:
            for completion in self._completions(output):
                piece = Piece(
                    completion.index,
                    completion.text,
                    completion.token_ids,
                    completion.logprobs,
                    completion.finish_reason,
                )
                choice = self._choice(len(choices), output, piece)
                choices.append(choice | _end(completion))
        return {
            **_envelope(result.head, self.OBJECT),
            "choices": choices,
            **self._usage(result),
            "parameters": self._parameters(result.outputs[0]),
        }

    def opening(self, head: Head) -> list[dict[str, Any]]:
        return []

    def piece(
        self, head: Head, prompt_index: int, output: RequestOutput, piece: Piece
    ) -> list[dict[str, Any]]:
        is_end = piece.finish_reason is not None
        if not (piece.text or piece.logprobs or is_end):
            return []
        choice = self._chunk_choice(prompt_index * self.n + piece.index, output, piece)
        if not is_end:
            return [self._chunk(head, choice | {"finish_reason": None})]
        choice |= _end(output.outputs[piece.index])
        return [self._chunk(head, choice) | {"parameters": self._parameters(output)}]

    def closing(self, result: Result) -> list[dict[str, Any]]:
        """An event without choices, which only who asked for it has to expect."""
        if not (self.asked.include_usage or self.asked.include_timing):
            return []
        return [{**_envelope(result.head, self.CHUNK_OBJECT), "choices": [], **self._usage(result)}]

    def _chunk(self, head: Head, choice: dict[str, Any]) -> dict[str, Any]:
        chunk = {**_envelope(head, self.CHUNK_OBJECT), "choices": [choice]}
        if self.asked.include_usage:
            chunk["usage"] = None
        return chunk

    def _usage(self, result: Result) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "usage": {
                "prompt_tokens": result.num_prompt_tokens,
                "completion_tokens": result.num_output_tokens,
                "total_tokens": result.num_prompt_tokens + result.num_output_tokens,
                "prompt_tokens_details": {"cached_tokens": result.timing.num_cached_tokens},
            },
            "cached": result.cached,
        }
        if self.asked.include_timing:
            shown["timing"] = result.shown_timing()
        return shown

    def _parameters(self, output: RequestOutput) -> dict[str, Any]:
        return {**shown_parameters(self.params, SHOWN), "n": self.n, "seed": output.outputs[0].seed}


def _envelope(head: Head, kind: str) -> dict[str, Any]:
    return {
        "id": head.id,
        "object": kind,
        "created": head.created,
        "model": head.model,
        "system_fingerprint": head.fingerprint,
    }


def _end(completion: Completion) -> dict[str, Any]:
    return {"finish_reason": completion.finish_reason, "seed": completion.seed}


def _with_stream_options(asked: Asked, options: object, lenient: bool) -> Asked:
    if options is None:
        return asked
    if not isinstance(options, dict):
        raise InvalidRequest(f"stream_options must be an object, got {options!r:.60}", param="stream_options")
    if not asked.stream:
        raise InvalidRequest("stream_options needs stream: true", param="stream_options")
    ignored = unknown_inside("stream_options", options, ("include_usage",), lenient=lenient)
    include_usage = options.get("include_usage")
    if include_usage is None:
        include_usage = False
    return replace(
        asked,
        include_usage=check("stream_options.include_usage", include_usage, INCLUDE_USAGE),
        ignored=(*asked.ignored, *ignored),
    )


_FINISH_REASONS = ["stop", "length", "timeout"]
_SEED: Schema = {"type": "integer", "description": "With it and n = 1, this answer alone comes again."}
_USAGE = object_schema(
    {
        "prompt_tokens": {"type": "integer"},
        "completion_tokens": {"type": "integer"},
        "total_tokens": {"type": "integer"},
        "prompt_tokens_details": object_schema(
            {
                "cached_tokens": {
                    "type": "integer",
                    "description": "Tokens of the prompts found in the prefix cache.",
                }
            }
        ),
    }
)
_OF_THE_END: dict[str, Schema] = {
    "usage": _USAGE,
    "cached": {"type": "boolean", "description": "Whether this answer was given before."},
    "parameters": {"type": "object", "description": "The parameters in effect, and the first seed."},
}


def _head_schemas(kind: str) -> dict[str, Schema]:
    return {
        "id": {"type": "string"},
        "object": {"enum": [kind]},
        "created": {"type": "integer", "description": "Seconds since 1970."},
        "model": {"type": "string"},
        "system_fingerprint": {
            "type": "string",
            "description": "Changes whenever the tokens of an equal request could.",
        },
    }


def response_schema(kind: str, choice: dict[str, Schema]) -> Schema:
    """The schema of a whole answer; `choice`: what the route has in an entry of `choices`."""
    end: dict[str, Schema] = {"finish_reason": {"enum": _FINISH_REASONS}, "seed": _SEED}
    entry = object_schema({"index": {"type": "integer"}, **choice, **end})
    choices: Schema = {"type": "array", "items": entry}
    return object_schema({**_head_schemas(kind), "choices": choices, **_OF_THE_END}, {"timing": TIMING})


def event_schema(kind: str, choice: dict[str, Schema]) -> Schema:
    """The same for an event of a stream; the entry's seed comes with its finish_reason."""
    reason: Schema = {"enum": [*_FINISH_REASONS, None]}
    entry = object_schema({"index": {"type": "integer"}, **choice, "finish_reason": reason}, {"seed": _SEED})
    choices: Schema = {"type": "array", "maxItems": 1, "items": entry}
    usage: Schema = {"anyOf": [_USAGE, {"type": "null"}], "description": "In the last event."}
    return object_schema(
        {**_head_schemas(kind), "choices": choices}, {**_OF_THE_END, "usage": usage, "timing": TIMING}
    )
