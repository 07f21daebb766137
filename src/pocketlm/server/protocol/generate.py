"""The JSON that POST /generate takes and gives, as the exercise has it; `pocketlm generate` uses it too."""

from __future__ import annotations

from typing import Any, ClassVar

from pocketlm.errors import InvalidRequest
from pocketlm.generation import Piece, Prompt, check_text
from pocketlm.loading import LoadedModel
from pocketlm.outputs import RequestOutput
from pocketlm.sampling import SamplingParams
from pocketlm.server.protocol.api_request import ApiRequest
from pocketlm.server.protocol.asked import Asked
from pocketlm.server.protocol.fields import SAMPLING, SERVING, Schema, body_schema, object_schema
from pocketlm.server.protocol.parameters import sampling_params, shown_parameters
from pocketlm.server.protocol.reading import Limits, check_integer
from pocketlm.server.protocol.result import TIMING, Head, Result

DEFAULT_MAX_LENGTH = 50
DEFAULTS = {"temperature": 0.7, "top_k": 50}  # top_k is that of Transformers' pipeline
SHOWN = ("max_length", "temperature", "top_k", "top_p")


class GenerateRequest(ApiRequest):
    KEEPS_SAMPLED = True  # the exercise's cache keeps everything
    FIELDS: ClassVar[dict[str, Schema]] = {
        "prompt": {
            "type": "string",
            "minLength": 1,
            "description": "Text to continue.",
            "example": "Kubernetes is a",
        },
        "max_length": {
            "type": "integer",
            "minimum": 1,
            "description": "Most tokens of prompt and answer together; default 50, or the server's limit if "
            "max_tokens is given.",
        },
        **SAMPLING,
        "max_tokens": {**SAMPLING["max_tokens"], "description": "Most new tokens; the smaller bound wins."},
        "temperature": {**SAMPLING["temperature"], "description": "0 is greedy; default 0.7."},
        "top_k": {
            **SAMPLING["top_k"],
            "description": "Draw from the k most likely tokens; 0: from all; default 50.",
        },
        "num_return_sequences": {
            "type": "integer",
            "minimum": 1,
            "description": "Answers to the prompt; default 1.",
        },
        **SERVING,
    }
    SCHEMA = body_schema(
        FIELDS,
        required=["prompt"],
        examples=[{"prompt": "Kubernetes is a", "max_length": 50, "temperature": 0.7}],
    )
    RESPONSE: ClassVar[Schema] = {
        "type": "object",
        "required": [
            "model",
            "prompt",
            "generated_text",
            "inference_time_seconds",
            "parameters",
            "finish_reason",
            "cached",
            "usage",
        ],
        "properties": {
            "model": {"type": "string", "description": "The model that answered."},
            "prompt": {"type": "string"},
            "generated_text": {"type": "string", "description": "The prompt and its first continuation."},
            "inference_time_seconds": {"type": "number"},
            "parameters": {"type": "object", "description": "The parameters in effect, and the seed."},
            "finish_reason": {"enum": ["stop", "length", "timeout"]},
            "cached": {"type": "boolean", "description": "Whether this answer was given before."},
            "usage": {
                "type": "object",
                "required": ["prompt_tokens", "completion_tokens"],
                "properties": {
                    "prompt_tokens": {"type": "integer"},
                    "completion_tokens": {"type": "integer", "description": "Of all continuations."},
                },
            },
            "generated_texts": {
                "type": "array",
                "items": {"type": "string"},
                "description": "All of them, if num_return_sequences is above 1.",
            },
            "finish_reasons": {"type": "array", "items": {"enum": ["stop", "length", "timeout"]}},
            "timing": TIMING,
        },
        "additionalProperties": False,
    }
    EVENT: ClassVar[Schema] = {
        "anyOf": [
            object_schema(
                {"text": {"type": "string"}, "index": {"type": "integer"}},
                {"finish_reason": {"enum": ["stop", "length", "timeout"]}},
            ),
            RESPONSE,
        ],
        "description": "A piece of answer `index`, or, at the end, the whole.",
    }

    def __init__(self, values: dict[str, Any], asked: Asked, limits: Limits) -> None:
        self.asked = asked
        self.prompt = _checked_prompt(values.pop("prompt", ""))
        limit = limits.max_length_limit
        if "max_length" in values:
            _check_max_length(values["max_length"], limit)
        elif "max_tokens" in values:
            values["max_length"] = limit
        else:
            values["max_length"] = min(DEFAULT_MAX_LENGTH, limit or DEFAULT_MAX_LENGTH)
        num_answers = values.pop("num_return_sequences", 1)
        values["n"] = check_integer("num_return_sequences", num_answers, 1, limits.max_n)
        self.params = sampling_params({**DEFAULTS, **values})

    def prepare(self, model: LoadedModel) -> tuple[list[Prompt], SamplingParams]:
        return [self.prompt], self.params

    def whole(self, result: Result) -> dict[str, Any]:
        [output] = result.outputs
        body = {**self.answer(result.head.model, output, result.seconds), "cached": result.cached}
        if self.asked.include_timing:
            body["timing"] = result.shown_timing()
        return body

    def answer(self, model: str, output: RequestOutput, seconds: float) -> dict[str, Any]:
        """The answer itself, without what only a server has to say."""
        texts = [output.prompt + completion.text for completion in output.outputs]
        reasons = [completion.finish_reason for completion in output.outputs]
        answer: dict[str, Any] = {
            "model": model,
            "prompt": output.prompt,
            "generated_text": texts[0],
            "inference_time_seconds": round(seconds, 2),
            "parameters": {
                **shown_parameters(self.params, SHOWN),
                "num_return_sequences": self.params.n,
                "seed": output.outputs[0].seed,
            },
            "finish_reason": reasons[0],
            "usage": {
                "prompt_tokens": len(output.prompt_token_ids),
                "completion_tokens": sum(len(completion.token_ids) for completion in output.outputs),
            },
        }
        if len(texts) > 1:
            answer |= {"generated_texts": texts, "finish_reasons": reasons}
        return answer

    def opening(self, head: Head) -> list[dict[str, Any]]:
        return []

    def piece(
        self, head: Head, prompt_index: int, output: RequestOutput, piece: Piece
    ) -> list[dict[str, Any]]:
        if piece.finish_reason is not None:
            return [{"text": piece.text, "index": piece.index, "finish_reason": piece.finish_reason}]
        return [{"text": piece.text, "index": piece.index}] if piece.text else []

    def closing(self, result: Result) -> list[dict[str, Any]]:
        return [self.whole(result)]


def _checked_prompt(prompt: object) -> str:
    if not isinstance(prompt, str):
        raise InvalidRequest(f"prompt must be a string, got {prompt!r:.60}", param="prompt")
    if not prompt:
        raise InvalidRequest("Prompt is required", param="prompt")
    check_text("prompt", prompt)
    return prompt


def _check_max_length(value: object, limit: int | None) -> None:
    if type(value) is int and limit is not None and value > limit:
        raise InvalidRequest(f"max_length cannot exceed {limit}", param="max_length")
    check_integer("max_length", value, 1, limit)
