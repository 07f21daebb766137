"""Sequence: one continuation of one prompt, from waiting to finished."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from enum import Enum

from pocketlm.outputs import FinishReason, TokenLogprobs
from pocketlm.sampling import SamplingParams


class SequenceStatus(Enum):
    WAITING = "waiting"  # not started yet, has no blocks
    RUNNING = "running"
    PREEMPTED = "preempted"  # waits for its turn again, its blocks are taken
    FINISHED = "finished"


@dataclass(eq=False, slots=True)
class Sequence:
    """The ids of a prompt and its answer, and how much of them is in the KV cache.

    There is no prefill or decode phase: a sequence needs the keys and values of all its tokens, and
    draws its next token in the step that computes the last of them.

        token_ids   [ prompt ............................ | output ......... ]
                    [ computed: in the KV cache | pending ................... ]
                      the first num_cached_tokens of these were found there
    """

    seq_id: int
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    max_new_tokens: int
    eos_token_ids: tuple[int, ...] = ()
    token_ids: list[int] = field(init=False)  # prompt, then output; only ever appended to
    stop_ids: frozenset[int] = field(init=False)  # each of these ends the sequence

    # Set by the scheduler.
    status: SequenceStatus = SequenceStatus.WAITING
    finish_reason: FinishReason | None = None
    num_cached_at_admission: int = 0  # num_cached_tokens when it first started, kept ever after
    # Of the prompt's tokens after the first, as far as they are computed; None: not asked for, or delivered.
    prompt_logprobs: list[TokenLogprobs] | None = field(init=False)

    # Set by the block manager.
    block_table: list[int] = field(default_factory=list)
    block_digests: list[bytes] = field(default_factory=list)  # of the full blocks looked at so far
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_token_ids)
        eos_token_ids = () if self.params.ignore_eos else self.eos_token_ids
        self.stop_ids = frozenset(self.params.stop_token_ids).union(eos_token_ids)
        self.prompt_logprobs = None if self.params.prompt_logprobs is None else []

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def num_pending_tokens(self) -> int:
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def draws(self) -> bool:
        """Whether there is a next token to draw once all tokens are computed."""
        return self.max_new_tokens > 0

    @property
    def wants_prompt_logits(self) -> bool:
        """Whether logits of prompt tokens are still to be reported."""
        return self.prompt_logprobs is not None and len(self.prompt_logprobs) < self.num_prompt_tokens - 1

    @property
    def first_wanted(self) -> int:
        """The first token whose logits are wanted: it must be computed, not only be found in the cache."""
        if self.prompt_logprobs is not None and self.wants_prompt_logits:
            return len(self.prompt_logprobs)  # the logits of token i are for token i + 1
        return self.num_tokens - 1

    def prompt_logits_in(self, num_tokens: int) -> range:
        """Those of the next `num_tokens` tokens whose logits are to be reported."""
        if not self.wants_prompt_logits:
            return range(0)
        end = min(self.num_computed_tokens + num_tokens, self.num_prompt_tokens - 1)
        return range(max(self.num_computed_tokens, self.first_wanted), end)

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[len(self.prompt_token_ids) :]

    @property
    def banned_ids(self) -> list[int]:
        """Tokens that must not be drawn next: what would end the answer before min_tokens."""
        return sorted(self.stop_ids) if self.num_output_tokens < self.params.min_tokens else []

    def supposing(self, token_ids: tuple[int, ...]) -> Sequence:
        """This sequence as it will be if it draws these tokens next: to draw from, not to be scheduled."""
        seq = copy(self)
        seq.token_ids = [*self.token_ids, *token_ids]
        return seq

    def append(self, token_id: int) -> FinishReason | None:
        """Add the token that was drawn; if it is the last one, the reason."""
        self.token_ids.append(token_id)
        if token_id in self.stop_ids:
            return FinishReason.STOP
        if self.num_output_tokens == self.max_new_tokens:
            return FinishReason.LENGTH
        return None
