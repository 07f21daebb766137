"""The JSON that POST /generate takes and gives, as the exercise has it; `pocketlm generate` uses it too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pocketlm.errors import InvalidRequest
from pocketlm.generation import check_text
from pocketlm.outputs import RequestOutput
from pocketlm.sampling import SamplingParams

DEFAULT_MAX_LENGTH = 50
DEFAULTS = {"temperature": 0.7, "top_k": 50, "top_p": 1.0}  # top_k is that of Transformers' pipeline
MAX_NUM_RETURN_SEQUENCES = 16

# What a request may hold: the JSON schema shown at /docs. Bounds are checked by SamplingParams.
FIELDS: dict[str, dict[str, Any]] = {
    "prompt": {"type": "string", "description": "Text to continue.", "example": "Kubernetes is a"},
    "max_length": {
        "type": "integer",
        "description": "Most tokens of prompt and answer together; default 50, or the server's limit if "
        "max_tokens is given.",
    },
    "max_tokens": {"type": "integer", "description": "Most new tokens; the smaller bound wins."},
    "min_tokens": {"type": "integer", "description": "No end and no stop string before this many."},
    "temperature": {"type": "number", "description": "0.0 (greedy) to 2.0; default 0.7."},
    "top_k": {"type": "integer", "description": "Draw from the k most likely tokens; 0 = all; default 50."},
    "top_p": {"type": "number", "description": "Draw from the likeliest tokens of this much probability."},
    "min_p": {"type": "number", "description": "Drop tokens below this share of the likeliest one."},
    "repetition_penalty": {"type": "number"},
    "presence_penalty": {"type": "number"},
    "frequency_penalty": {"type": "number"},
    "logit_bias": {"type": "object", "description": "Token id, as a string -> added to its logit."},
    "num_return_sequences": {"type": "integer", "description": "Answers to one prompt; default 1."},
    "seed": {"type": "integer", "description": "Answer i is drawn with seed + i; default: a random one."},
    "stop": {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
        "description": "The answer ends before the first of these strings.",
    },
    "stop_token_ids": {"type": "array", "items": {"type": "integer"}},
    "ignore_eos": {"type": "boolean", "description": "Go on after the end-of-text token."},
}
SCHEMA = {"type": "object", "required": ["prompt"], "properties": FIELDS}

TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class GenerateRequest:
    prompt: str
    params: SamplingParams
    given: frozenset[str]  # the fields that the request held

    @classmethod
    def from_json(cls, body: Mapping[str, Any], *, max_length_limit: int | None = None) -> GenerateRequest:
        """Check every field, or raise InvalidRequest that names it. A field that is null was not given."""
        unknown = sorted(body.keys() - FIELDS.keys())
        if unknown:
            named = ", ".join(f"{name!r:.60}" for name in unknown[:5])
            raise InvalidRequest(f"unknown field {named}; allowed are {', '.join(FIELDS)}", param=unknown[0])
        values = {name: value for name, value in body.items() if value is not None}
        given = frozenset(values)
        prompt = values.pop("prompt", "")
        if not isinstance(prompt, str):
            raise InvalidRequest(f"prompt must be a string, got {prompt!r:.60}", param="prompt")
        if not prompt:
            raise InvalidRequest("Prompt is required", param="prompt")
        check_text("prompt", prompt)

        if "max_length" in values:
            _check_max_length(values["max_length"], max_length_limit)
        else:
            values["max_length"] = max_length_limit
            if "max_tokens" not in values:
                values["max_length"] = min(DEFAULT_MAX_LENGTH, max_length_limit or DEFAULT_MAX_LENGTH)
        values["n"] = _checked_num_return_sequences(values.pop("num_return_sequences", 1))
        if "logit_bias" in values:
            values["logit_bias"] = _with_token_ids(values["logit_bias"])
        params = SamplingParams(**{**DEFAULTS, **values})
        for string in params.stop:
            check_text("stop", string)
        return cls(prompt, params, given)

    def answer(self, output: RequestOutput, seconds: float) -> dict[str, Any]:
        """The body of the response."""
        texts = [output.prompt + completion.text for completion in output.outputs]
        reasons = [completion.finish_reason for completion in output.outputs]
        answer: dict[str, Any] = {
            "prompt": output.prompt,
            "generated_text": texts[0],
            "inference_time_seconds": round(seconds, 2),
            "parameters": self.parameters(output.outputs[0].seed),
            "finish_reason": reasons[0],
            "usage": {
                "prompt_tokens": len(output.prompt_token_ids),
                "completion_tokens": sum(len(completion.token_ids) for completion in output.outputs),
            },
        }
        if len(texts) > 1:
            answer |= {"generated_texts": texts, "finish_reasons": reasons}
        return answer

    def parameters(self, seed: int) -> dict[str, Any]:
        """The parameters in effect, and every other one that was given."""
        names = ["max_length", *DEFAULTS]
        names += [field.name for field in fields(SamplingParams) if field.name in self.given - set(names)]
        shown = {name: getattr(self.params, name) for name in names}
        return shown | {"num_return_sequences": self.params.n, "seed": seed}


def _check_max_length(value: object, limit: int | None) -> None:
    if type(value) is int and limit is not None and value > limit:
        raise InvalidRequest(f"max_length cannot exceed {limit}", param="max_length")
    if type(value) is not int or value < 1:
        bounds = "at least 1" if limit is None else f"between 1 and {limit}"
        raise InvalidRequest(f"max_length must be an integer {bounds}, got {value!r:.60}", param="max_length")


def _checked_num_return_sequences(value: object) -> int:
    if type(value) is not int or not 1 <= value <= MAX_NUM_RETURN_SEQUENCES:
        raise InvalidRequest(
            f"num_return_sequences must be an integer between 1 and {MAX_NUM_RETURN_SEQUENCES}, "
            f"got {value!r:.60}",
            param="num_return_sequences",
        )
    return value


def _with_token_ids(logit_bias: object) -> object:
    """The keys of a JSON object are strings; SamplingParams takes token ids."""
    if not isinstance(logit_bias, dict):
        return logit_bias
    for key in logit_bias:
        if not TOKEN_ID.fullmatch(key):
            raise InvalidRequest(
                f'the keys of logit_bias must be token ids, like "42", got {key!r:.60}', param="logit_bias"
            )
    return {int(key): bias for key, bias in logit_bias.items()}
