"""Batch: what one step computes, and what it found out about each sequence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from pocketlm.engine.sequence import Sequence
from pocketlm.outputs import TokenLogprobs


class ScheduledSequence(NamedTuple):
    """The next `num_scheduled_tokens` pending tokens of `seq`, at least one.

    After a single one that is all it has, a draft may follow: a guess at what it will draw, computed with
    it. It is no part of `seq` before its tokens are drawn.
    """

    seq: Sequence
    num_scheduled_tokens: int
    draft_token_ids: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens to compute, those of the draft among them."""
        return self.num_scheduled_tokens + len(self.draft_token_ids)

    @property
    def reaches_end(self) -> bool:
        """Whether these are all its pending tokens."""
        return self.num_scheduled_tokens == self.seq.num_pending_tokens

    @property
    def draws(self) -> bool:
        """Whether the next token is drawn after these."""
        return self.reaches_end and self.seq.draws

    @property
    def num_draws(self) -> int:
        """One for the token after the pending ones, and one for the token after each of the draft."""
        return 1 + len(self.draft_token_ids) if self.draws else 0

    @property
    def prompt_logits(self) -> range:
        """Those of these tokens whose logits are to be reported."""
        return self.seq.prompt_logits_in(self.num_scheduled_tokens)


Batch: TypeAlias = list[ScheduledSequence]


class ComputedSequence(NamedTuple):
    """What one step found out about one of its sequences, without its draft."""

    token_id: int | None = None  # the token drawn; None: it is not at its end yet, or draws nothing
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: Iterable[TokenLogprobs] = ()  # of the prompt tokens that the step computed
    is_finite: bool = True  # False: some logits were not, and the rest says nothing
    # The same for each token of the draft; it holds only if that token and those before it are drawn.
    after_draft: tuple[ComputedSequence, ...] = ()
