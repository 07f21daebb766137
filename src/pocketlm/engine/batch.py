"""Batch: what one step computes, and the token it draws for each sequence that is ready for one."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from pocketlm.engine.sequence import Sequence
from pocketlm.outputs import TokenLogprobs


class ScheduledSequence(NamedTuple):
    """The next `num_scheduled_tokens` pending tokens of `seq`, at least one."""

    seq: Sequence
    num_scheduled_tokens: int

    @property
    def reaches_end(self) -> bool:
        """Whether these are all its pending tokens, so that the next one can be drawn."""
        return self.num_scheduled_tokens == self.seq.num_pending_tokens


Batch: TypeAlias = list[ScheduledSequence]


class SampledToken(NamedTuple):
    token_id: int | None  # None: the logits were not finite
    logprobs: TokenLogprobs | None = None
