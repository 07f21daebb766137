"""The JSON of POST /v1/chat/completions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pocketlm.errors import ContextLengthExceeded, InvalidRequest
from pocketlm.generation import Piece, Prompt, check_text
from pocketlm.loading import LoadedModel
from pocketlm.outputs import RequestOutput
from pocketlm.sampling import MAX_LOGPROBS, MAX_STOP_STRINGS, SamplingParams
from pocketlm.server.protocol.asked import Asked
from pocketlm.server.protocol.fields import Schema, body_schema, needs, object_schema
from pocketlm.server.protocol.logprobs import CHAT_LOGPROBS, chat_logprobs
from pocketlm.server.protocol.openai_request import (
    OPENAI_FIELDS,
    OpenAIRequest,
    event_schema,
    response_schema,
)
from pocketlm.server.protocol.parameters import sampling_params
from pocketlm.server.protocol.reading import MAX_NAMED, Limits, check, check_integer, unknown_inside
from pocketlm.server.protocol.result import Head

ROLES = ("system", "developer", "user", "assistant")
MAX_MESSAGES = 1024
MAX_STOP = MAX_STOP_STRINGS - 1  # the plain template has one of its own

_TEXT_PART: Schema = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"enum": ["text"]}, "text": {"type": "string"}},
    "additionalProperties": False,
}
_ROLE: Schema = {"enum": ["assistant"]}
_MESSAGE = object_schema({"role": _ROLE, "content": {"type": "string"}, "refusal": {"type": "null"}})
_DELTA = object_schema({}, {"role": _ROLE, "content": {"type": "string"}})


class ChatRequest(OpenAIRequest):
    OBJECT = "chat.completion"
    CHUNK_OBJECT = "chat.completion.chunk"
    FIELDS: ClassVar[dict[str, Schema]] = {
        "messages": {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_MESSAGES,
            "items": {
                "type": "object",
                "required": ["role", "content"],
                "properties": {
                    "role": {"enum": [*ROLES]},
                    "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART}]},
                },
                "additionalProperties": False,
            },
            "description": "The conversation so far, each message's text a string or a list of text parts.",
            "example": [{"role": "user", "content": "What is a pod?"}],
        },
        **OPENAI_FIELDS,
        "max_tokens": {
            **OPENAI_FIELDS["max_tokens"],
            "description": "Most new tokens; default: the room left in the context window.",
        },
        "max_completion_tokens": {
            **OPENAI_FIELDS["max_tokens"],
            "description": "The newer name of max_tokens.",
        },
        "logprobs": {
            "type": "boolean",
            "description": "Give the log-probability of each token; default false.",
        },
        "top_logprobs": {
            "type": "integer",
            "minimum": 0,
            "maximum": MAX_LOGPROBS,
            "description": "And of this many of the likeliest. Only with logprobs.",
        },
    }
    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "metadata": ({},),
        "modalities": (["text"],),
        "parallel_tool_calls": (True, False),
        "prediction": (),
        "reasoning_effort": ("none",),
        "response_format": ({"type": "text"},),
        "service_tier": ("auto", "default"),
        "store": (False,),
        "tool_choice": ("none", "auto"),
        "tools": ([],),
        "verbosity": ("medium",),
        "web_search_options": (),
    }
    SCHEMA = body_schema(
        FIELDS,
        required=["messages"],
        examples=[{"messages": [{"role": "user", "content": "What is a pod?"}], "max_tokens": 20}],
        allOf=[needs("stream_options", "object", "stream"), needs("top_logprobs", "integer", "logprobs")],
    )
    RESPONSE = response_schema(OBJECT, {"message": _MESSAGE, "logprobs": CHAT_LOGPROBS})
    EVENT = event_schema(CHUNK_OBJECT, {"delta": _DELTA, "logprobs": CHAT_LOGPROBS})

    def __init__(self, values: dict[str, Any], asked: Asked, limits: Limits) -> None:
        super().__init__(values, asked, limits)
        self.messages, ignored = checked_messages(values.pop("messages", None), lenient=limits.lenient)
        self.asked = replace(self.asked, ignored=(*self.asked.ignored, *ignored))
        _take_max_completion_tokens(values)
        self._num_top = _take_num_top_logprobs(values)
        if isinstance(values.get("stop"), list) and len(values["stop"]) > MAX_STOP:
            raise InvalidRequest(
                f"stop takes at most {MAX_STOP} entries, got {len(values['stop'])}", param="stop"
            )
        self.params = sampling_params({**values, "logprobs": self._num_top, "n": self.n})
        self._begun: set[int] = set()  # choices whose text has begun

    def prepare(self, model: LoadedModel) -> tuple[list[Prompt], SamplingParams]:
        self._tokenizer = model.tokenizer
        self._drops_space = model.chat_template.is_plain
        token_ids = prompt_of(model, self.messages)
        window = model.engine.max_model_len
        if len(token_ids) >= window:
            raise ContextLengthExceeded(
                f"the messages have {len(token_ids)} tokens and the context window is {window}, messages "
                "and answer together; shorten them",
                param="messages",
            )
        max_tokens = self.params.max_tokens
        if max_tokens is None:
            max_tokens = window - len(token_ids)
        stop = (*self.params.stop, *model.chat_template.stop)
        self.params = replace(self.params, max_tokens=max_tokens, stop=stop)
        return [token_ids], self.params

    def opening(self, head: Head) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": ""}
        return [
            self._chunk(head, {"index": i, "delta": delta, "logprobs": None, "finish_reason": None})
            for i in range(self.n)
        ]

    def _choice(self, index: int, output: RequestOutput, piece: Piece) -> dict[str, Any]:
        self._begun.discard(index)
        message = {"role": "assistant", "content": self._content(index, piece), "refusal": None}
        return {"index": index, "message": message, "logprobs": self._logprobs(piece)}

    def _chunk_choice(self, index: int, output: RequestOutput, piece: Piece) -> dict[str, Any]:
        content = self._content(index, piece)
        delta = {"content": content} if content else {}
        return {"index": index, "delta": delta, "logprobs": self._logprobs(piece)}

    def _content(self, index: int, piece: Piece) -> str:
        """The text, without the space that the plain template leaves for the answer to begin with.

        So an answer that is sent back as a message gives the same prompt tokens again.
        """
        if not piece.text or index in self._begun:
            return piece.text
        self._begun.add(index)
        return piece.text.removeprefix(" ") if self._drops_space else piece.text

    def _logprobs(self, piece: Piece) -> dict[str, Any] | None:
        if self._num_top is None:
            return None
        entries = chat_logprobs(self._tokenizer, piece.token_ids, piece.logprobs or [], self._num_top)
        return {"content": entries, "refusal": None}


def prompt_of(model: LoadedModel, messages: list[dict[str, str]]) -> list[int]:
    """The token ids after which the assistant speaks."""
    text = model.chat_template.render(messages)
    # A checkpoint's template spells out its own special tokens; the plain one has none.
    return model.tokenizer.encode(text, add_special_tokens=model.chat_template.is_plain)


def checked_messages(messages: object, *, lenient: bool) -> tuple[list[dict[str, str]], list[str]]:
    """The messages, each with a role that templates know and its text, and the fields that were dropped."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        what = f"{len(messages)} of them" if isinstance(messages, list) else f"{messages!r:.60}"
        raise InvalidRequest(
            f"messages must be a list of 1 to {MAX_MESSAGES} messages, got {what}", param="messages"
        )
    checked, ignored = [], []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            raise InvalidRequest(
                f"{where} must be an object with role and content, got {message!r:.60}", param=where
            )
        ignored += unknown_inside(where, message, ("role", "content"), lenient=lenient)
        role = message.get("role")
        if role not in ROLES:
            raise InvalidRequest(
                f"{where}.role must be one of {', '.join(ROLES)}, got {role!r:.60}", param=f"{where}.role"
            )
        content, dropped = _checked_content(f"{where}.content", message.get("content"), lenient=lenient)
        ignored += dropped
        checked.append({"role": "system" if role == "developer" else role, "content": content})
    return checked, ignored[:MAX_NAMED]


def _checked_content(where: str, content: object, *, lenient: bool) -> tuple[str, list[str]]:
    """The text of a message; its parts are lines of it, as in vLLM."""
    ignored: list[str] = []
    if isinstance(content, list):
        texts = []
        for i, part in enumerate(content):
            if (
                not isinstance(part, dict)
                or part.get("type") != "text"
                or not isinstance(part.get("text"), str)
            ):
                raise InvalidRequest(
                    f'{where}[{i}] must be {{"type": "text", "text": "..."}}: this server takes text only, '
                    f"got {part!r:.60}",
                    param=f"{where}[{i}]",
                )
            ignored += unknown_inside(f"{where}[{i}]", part, ("type", "text"), lenient=lenient)
            texts.append(part["text"])
        content = "\n".join(texts)
    if not isinstance(content, str):
        raise InvalidRequest(
            f"{where} must be a string or a list of text parts, got {content!r:.60}", param=where
        )
    check_text(where, content)
    return content, ignored


def _take_max_completion_tokens(values: dict[str, Any]) -> None:
    """Make max_tokens of its newer name."""
    if "max_completion_tokens" not in values:
        return
    max_tokens = check_integer("max_completion_tokens", values.pop("max_completion_tokens"), 0)
    if values.setdefault("max_tokens", max_tokens) != max_tokens:
        raise InvalidRequest(
            f"max_completion_tokens and max_tokens mean the same; got {max_tokens} and "
            f"{values['max_tokens']!r:.60}",
            param="max_completion_tokens",
        )


def _take_num_top_logprobs(values: dict[str, Any]) -> int | None:
    """How many of the likeliest tokens to show beside each; None: no log-probabilities at all."""
    wants_logprobs = check("logprobs", values.pop("logprobs", False), ChatRequest.FIELDS["logprobs"])
    num_top = values.pop("top_logprobs", None)
    if num_top is not None:
        check_integer("top_logprobs", num_top, 0, MAX_LOGPROBS)
        if not wants_logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
    return (num_top or 0) if wants_logprobs else None
