"""What an answer is made of: Head is known when it begins, Result when it has ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pocketlm.outputs import RequestOutput, Timing


@dataclass(frozen=True)
class Head:
    id: str
    created: int  # seconds since 1970
    model: str
    fingerprint: str  # changes whenever the tokens of an equal request could


@dataclass(frozen=True)
class Result:
    head: Head
    outputs: list[RequestOutput]  # one a prompt
    cached: bool
    seconds: float  # from the request's arrival to its last token
    timing: Timing

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(output.prompt_token_ids) for output in self.outputs)

    @property
    def num_output_tokens(self) -> int:
        return sum(len(completion.token_ids) for output in self.outputs for completion in output.outputs)

    def shown_timing(self) -> dict[str, Any]:
        """The numbers of the log line, for a body with include_timing."""
        return {
            "queue_seconds": self.timing.queue_s,
            "prefill_seconds": self.timing.prefill_s,
            "decode_seconds": self.timing.decode_s,
            "total_seconds": self.seconds,
            "cpu_seconds": self.timing.cpu_s,
            "cached_tokens": self.timing.num_cached_tokens,
        }


TIMING: dict[str, Any] = {
    "type": "object",
    "description": "Where the time went, if include_timing was given.",
    "required": [
        "queue_seconds",
        "prefill_seconds",
        "decode_seconds",
        "total_seconds",
        "cpu_seconds",
        "cached_tokens",
    ],
    "properties": {
        "queue_seconds": {"type": "number", "description": "Until the engine first worked on it."},
        "prefill_seconds": {"type": "number", "description": "From then until the first token."},
        "decode_seconds": {"type": "number", "description": "From then until the last token."},
        "total_seconds": {"type": "number", "description": "From the request's arrival to its last token."},
        "cpu_seconds": {
            "type": ["number", "null"],
            "description": "Processor time of all compute threads; null if it cannot be measured.",
        },
        "cached_tokens": {
            "type": "integer",
            "description": "Tokens of the prompt found in the prefix cache.",
        },
    },
}
