"""The JSON of POST /v1/completions."""

from __future__ import annotations

from typing import Any, ClassVar

from pocketlm.errors import InvalidRequest
from pocketlm.generation import Piece, Prompt, check_text
from pocketlm.loading import LoadedModel
from pocketlm.outputs import Completion, RequestOutput
from pocketlm.sampling import DEFAULT_MAX_TOKENS, MAX_LOGPROBS, SamplingParams
from pocketlm.server.protocol.asked import Asked
from pocketlm.server.protocol.fields import Schema, body_schema, needs
from pocketlm.server.protocol.logprobs import COMPLETION_LOGPROBS, TextOffsets, completion_logprobs
from pocketlm.server.protocol.openai_request import (
    OPENAI_FIELDS,
    OpenAIRequest,
    event_schema,
    response_schema,
)
from pocketlm.server.protocol.parameters import sampling_params
from pocketlm.server.protocol.reading import Limits, check, check_integer

MAX_PROMPTS = 128

_TEXT: Schema = {"type": "string", "minLength": 1}
_TOKEN_IDS: Schema = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_CHOICE: dict[str, Schema] = {"text": {"type": "string"}, "logprobs": COMPLETION_LOGPROBS}


class CompletionRequest(OpenAIRequest):
    OBJECT = "text_completion"
    CHUNK_OBJECT = "text_completion"
    FIELDS: ClassVar[dict[str, Schema]] = {
        "prompt": {
            "anyOf": [
                _TEXT,
                {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": _TEXT},
                _TOKEN_IDS,
                {"type": "array", "minItems": 1, "maxItems": MAX_PROMPTS, "items": _TOKEN_IDS},
            ],
            "description": "Text to continue, or its token ids, or a list of either.",
            "example": "Kubernetes is a",
        },
        **OPENAI_FIELDS,
        "max_tokens": {
            **OPENAI_FIELDS["max_tokens"],
            "description": f"Most new tokens, as far as the context window has room; default "
            f"{DEFAULT_MAX_TOKENS}.",
        },
        "best_of": {
            "type": "integer",
            "minimum": 1,
            "description": "Draw this many answers and give the n whose tokens have the highest mean "
            "log-probability; default n. Not with stream.",
        },
        "echo": {"type": "boolean", "description": "Begin each answer with its prompt; default false."},
        "logprobs": {
            "type": "integer",
            "minimum": 0,
            "maximum": MAX_LOGPROBS,
            "description": "Give the log-probability of each token and of this many of the likeliest.",
        },
    }
    UNSUPPORTED: ClassVar[dict[str, tuple[Any, ...]]] = {"suffix": ("",)}
    SCHEMA = body_schema(
        FIELDS,
        required=["prompt"],
        examples=[{"prompt": "Kubernetes is a", "max_tokens": 20, "temperature": 0.7}],
        allOf=[needs("stream_options", "object", "stream")],
    )
    RESPONSE = response_schema(OBJECT, _CHOICE)
    EVENT = event_schema(CHUNK_OBJECT, _CHOICE)

    def __init__(self, values: dict[str, Any], asked: Asked, limits: Limits) -> None:
        super().__init__(values, asked, limits)
        self.prompts = _checked_prompts(values.pop("prompt", None))
        self._echo: bool = check("echo", values.pop("echo", False), self.FIELDS["echo"])
        self._shows_logprobs = "logprobs" in values
        self._offsets: dict[int, TextOffsets] = {}  # of the choices that have begun
        best_of = check_integer("best_of", values.pop("best_of", self.n), self.n, limits.max_n)
        if best_of > self.n:
            if asked.stream:
                raise InvalidRequest("best_of above n cannot be streamed", param="best_of")
            values.setdefault("logprobs", 0)
        if self._echo and self._shows_logprobs:
            if asked.stream and self.n > 1:
                # The prompt's are known when the first choice begins, which another may precede.
                raise InvalidRequest("echo with logprobs can be streamed for n = 1 only", param="echo")
            values["prompt_logprobs"] = values["logprobs"]
        self.params = sampling_params({"max_tokens": DEFAULT_MAX_TOKENS, **values, "n": best_of})

    def prepare(self, model: LoadedModel) -> tuple[list[Prompt], SamplingParams]:
        self._tokenizer = model.tokenizer
        return self.prompts, self.params

    def _completions(self, output: RequestOutput) -> list[Completion]:
        if self.params.n == self.n:
            return output.outputs
        return sorted(output.outputs, key=_mean_logprob, reverse=True)[: self.n]

    def _choice(self, index: int, output: RequestOutput, piece: Piece) -> dict[str, Any]:
        self._offsets.pop(index, None)
        return self._chunk_choice(index, output, piece)

    def _chunk_choice(self, index: int, output: RequestOutput, piece: Piece) -> dict[str, Any]:
        prompt = output.prompt if self._echo and index not in self._offsets else ""
        offsets = self._offsets.setdefault(index, TextOffsets(self._tokenizer, len(prompt)))
        logprobs = None
        if self._shows_logprobs:
            logprobs = completion_logprobs(self._tokenizer, piece.token_ids, piece.logprobs or [], offsets)
            if prompt and output.prompt_logprobs is not None:
                of_prompt = completion_logprobs(
                    self._tokenizer,
                    output.prompt_token_ids,
                    output.prompt_logprobs,
                    TextOffsets(self._tokenizer, 0),
                )
                logprobs = {name: of_prompt[name] + entries for name, entries in logprobs.items()}
        return {"index": index, "text": prompt + piece.text, "logprobs": logprobs}


def _checked_prompts(prompt: object) -> list[Prompt]:
    """One prompt or several, as text or as token ids. Whether the model has the ids, the engine checks."""
    if prompt is None:
        raise InvalidRequest("prompt is required", param="prompt")
    is_list_of_prompts = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], str | list)
    prompts = prompt if is_list_of_prompts else [prompt]
    assert isinstance(prompts, list)
    if len(prompts) > MAX_PROMPTS:
        raise InvalidRequest(
            f"prompt takes at most {MAX_PROMPTS} prompts, got {len(prompts)}", param="prompt"
        )
    for one in prompts:
        is_text = isinstance(one, str) and bool(one)
        is_token_ids = isinstance(one, list) and bool(one) and all(map(_is_token_id, one))
        if not (is_text or is_token_ids) or type(one) is not type(prompts[0]):
            raise InvalidRequest(
                "prompt must be a string, a list of token ids, or a list of strings or of lists of token "
                f"ids, none of them empty, got {one!r:.60}",
                param="prompt",
            )
        if is_text:
            check_text("prompt", one)
    return prompts


def _is_token_id(value: object) -> bool:
    return type(value) is int and value >= 0


def _mean_logprob(completion: Completion) -> float:
    assert completion.logprobs is not None
    pairs = zip(completion.token_ids, completion.logprobs, strict=True)
    return sum(entry[token_id].logprob for token_id, entry in pairs) / max(1, len(completion.token_ids))
