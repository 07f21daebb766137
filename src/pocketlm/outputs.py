"""What a generation answers with: ids while it runs, text at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from pocketlm.errors import EngineError


class FinishReason(str, Enum):
    """Why a sequence ended; the values are the words of the OpenAI API where it has one."""

    STOP = "stop"  # an end-of-sequence token, a stop token or a stop string
    LENGTH = "length"  # max_tokens, max_length or the context window
    TIMEOUT = "timeout"
    ABORT = "abort"  # the caller gave up
    ERROR = "error"  # this sequence failed, e.g. non-finite logits


@dataclass(frozen=True, slots=True)
class Logprob:
    """Natural log-probability of one token under the model's raw logits."""

    logprob: float
    rank: int  # 1 = the most likely token of the vocabulary
    decoded_token: str


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, as ids: the sampled token first, then the most likely."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    ranks: tuple[int, ...]


@dataclass(slots=True)  # not frozen: one is made for every token, and that would cost three times as much
class StepOutput:
    """What one engine step did for one sequence. Nobody changes it.

    `token_id` is None where the sequence ended without a token (max_tokens=0, abort, error).
    """

    seq_id: int
    token_id: int | None
    finish_reason: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    # With the first output of a sequence, if asked for: of its prompt's tokens from the second on.
    prompt_logprobs: list[TokenLogprobs] | None = None
    error: EngineError | None = None  # why the sequence failed


@dataclass(slots=True)
class Completion:
    """One generated continuation."""

    index: int
    text: str
    token_ids: list[int]
    seed: int
    finish_reason: FinishReason | None = None
    # One entry a token, if asked for: {token_id: Logprob}, the sampled token always among them.
    logprobs: list[dict[int, Logprob]] | None = None


@dataclass(slots=True)
class RequestOutput:
    """The answer to one prompt; `outputs` has `n` completions in order of their index."""

    prompt: str
    prompt_token_ids: list[int]
    outputs: list[Completion] = field(default_factory=list)
    # One entry a prompt token, if asked for; None for the first, which nothing predicts.
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None


@dataclass(slots=True)
class Timing:
    """Where the time of a request went, in seconds."""

    queue_s: float = 0.0  # until the engine first worked on it
    prefill_s: float = 0.0  # from then until its first token
    decode_s: float = 0.0  # from then until its last token
    cpu_s: float | None = 0.0  # processor time of all compute threads for its tokens; None: not measurable
    num_cached_tokens: int = 0  # of the prompt, found in the prefix cache
