"""Scheduler: who computes how many tokens in the next step, and what becomes of them afterwards."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import zip_longest

from pocketlm.engine import prompt_lookup
from pocketlm.engine.batch import Batch, ComputedSequence, ScheduledSequence
from pocketlm.engine.block_manager import BlockManager
from pocketlm.engine.sequence import Sequence, SequenceStatus
from pocketlm.errors import EngineError, NonFiniteLogits
from pocketlm.outputs import FinishReason, StepOutput

# Tokens in a step whose sequences report their prompts' logits: each has a row as wide as the vocabulary.
PROMPT_LOGPROBS_CHUNK = 64

NON_FINITE_LOGITS = (
    "the model's logits were not finite, so no token could be drawn; "
    "try dtype float32, and check that the checkpoint is sound"
)


@dataclass
class _Budget:
    """What is left of one step."""

    num_tokens: int
    num_prompt_logits: int

    def chunk_of(self, seq: Sequence, num_pending_tokens: int) -> int:
        """How many of these tokens `seq` may compute."""
        num_tokens = min(num_pending_tokens, self.num_tokens)
        return min(num_tokens, self.num_prompt_logits) if seq.wants_prompt_logits else num_tokens

    def spend(self, seq: Sequence, num_tokens: int) -> None:
        self.num_tokens -= num_tokens
        if seq.wants_prompt_logits:
            self.num_prompt_logits -= num_tokens


class Scheduler:
    """First come, first served, within a budget of tokens a step.

    The order of arrival is kept throughout: every running sequence is older than every waiting one,
    and both lists are sorted. So the oldest sequence always gets what it needs, and everyone ends.

    Only the youngest running sequence can have more than one token pending: nobody is admitted behind
    one that does not get all its tokens. In one walk over the running sequences, those that decode
    are therefore served before the chunk of a prefill, and before anyone waiting.

    While one sequence decodes alone, the step's time is that of reading the weights, and a few rows more
    cost little: up to `speculative_tokens` guessed tokens are computed with its own. In company the
    rows are worth more to the others.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_batch_tokens: int,
        block_manager: BlockManager,
        max_prompt_logits: int = PROMPT_LOGPROBS_CHUNK,
        speculative_tokens: int = 0,
    ) -> None:
        self.max_num_seqs = max_num_seqs
        self.max_batch_tokens = max_batch_tokens
        self.max_prompt_logits = max_prompt_logits
        self.speculative_tokens = speculative_tokens
        self.block_manager = block_manager
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_prompt_tokens = 0  # of all sequences added
        self.num_output_tokens = 0
        self.num_draft_tokens = 0
        self.num_accepted_tokens = 0
        self._sequences: dict[int, Sequence] = {}  # waiting and running

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    def add(self, seq: Sequence) -> None:
        self._sequences[seq.seq_id] = seq
        self.num_prompt_tokens += seq.num_prompt_tokens
        self.waiting.append(seq)

    def abort(self, seq_id: int) -> None:
        """Drop a sequence and free its blocks; no effect if it is unknown or finished."""
        if seq_id in self._sequences:
            self._finish(self._sequences[seq_id], FinishReason.ABORT)

    def schedule(self) -> Batch:
        """The next batch; empty only if there is no sequence left."""
        batch: Batch = []
        budget = _Budget(self.max_batch_tokens, self.max_prompt_logits)
        preempted_before = self.num_preemptions
        for seq in self.running:  # oldest first; _make_room may take sequences off the end
            num_tokens = budget.chunk_of(seq, seq.num_pending_tokens)
            if self._make_room(seq, num_tokens):
                batch.append(ScheduledSequence(seq, num_tokens))
                budget.spend(seq, num_tokens)
        everyone_has_room = len(batch) == len(self.running) and self.num_preemptions == preempted_before
        if everyone_has_room:
            self._admit(batch, budget)
        if self.speculative_tokens and len(self.running) == 1:
            [item] = batch
            return [self._with_draft(item, budget)]
        return batch

    def update(self, batch: Batch, computed: list[ComputedSequence]) -> list[StepOutput]:
        """Record that `batch` was computed, and what came of it for each of its sequences."""
        outputs = []
        for item, result in zip(batch, computed, strict=True):
            outputs += self._record(item, result)
        return outputs

    def fail(self, seq: Sequence, error: EngineError) -> StepOutput:
        """End a sequence that cannot go on; `error` tells the caller why."""
        self._finish(seq, FinishReason.ERROR)
        return StepOutput(seq.seq_id, None, FinishReason.ERROR, error=error)

    def fail_all(self) -> None:
        for seq in list(self._sequences.values()):
            self._finish(seq, FinishReason.ERROR)

    def _record(self, item: ScheduledSequence, result: ComputedSequence) -> list[StepOutput]:
        """Take the tokens drawn for one sequence, as far as each followed what was really drawn before it.

        What the rest of the draft left in the KV cache lies beyond num_computed_tokens: it is never read,
        and overwritten by the tokens that come there.
        """
        seq, is_at_end = item.seq, item.reaches_end
        self.num_draft_tokens += len(item.draft_token_ids)
        outputs: list[StepOutput] = []
        for one, guess in zip_longest((result, *result.after_draft), item.draft_token_ids):
            if not one.is_finite:
                outputs.append(self.fail(seq, NonFiniteLogits(NON_FINITE_LOGITS)))
                break
            self.block_manager.commit(seq, item.num_scheduled_tokens)  # one, if there is a draft
            if seq.prompt_logprobs is not None:
                seq.prompt_logprobs += one.prompt_logprobs
            if is_at_end:
                outputs.append(self._advance(seq, one))
            if guess is None or one.token_id != guess:
                break
            self.num_accepted_tokens += 1
            if seq.status is SequenceStatus.FINISHED:
                break
        return outputs

    def _advance(self, seq: Sequence, result: ComputedSequence) -> StepOutput:
        """Add the token drawn to a sequence of which all tokens are computed, or end one that draws none."""
        finish_reason: FinishReason | None = FinishReason.LENGTH
        if result.token_id is not None:
            finish_reason = seq.append(result.token_id)
            self.num_output_tokens += 1
        prompt_logprobs, seq.prompt_logprobs = seq.prompt_logprobs, None
        if finish_reason is not None:
            self._finish(seq, finish_reason)
        return StepOutput(seq.seq_id, result.token_id, finish_reason, result.logprobs, prompt_logprobs)

    def _make_room(self, seq: Sequence, num_tokens: int) -> bool:
        """Blocks for the next tokens of `seq`, by preempting younger sequences if need be.

        The youngest has nobody to preempt: it sits the step out and keeps the blocks it has.
        """
        while not self.block_manager.grow(seq, num_tokens):
            if self.running[-1] is seq:
                return False
            self._preempt_youngest()
        return True

    def _preempt_youngest(self) -> None:
        """Back to the head of the queue; its outputs are kept, and computed again when it returns."""
        seq = self.running.pop()
        self.block_manager.free(seq)
        seq.status = SequenceStatus.PREEMPTED
        self.waiting.appendleft(seq)
        self.num_preemptions += 1

    def _admit(self, batch: Batch, budget: _Budget) -> None:
        """Start waiting sequences for which there are tokens, seats and blocks now."""
        while self.waiting and budget.num_tokens > 0 and len(self.running) < self.max_num_seqs:
            if batch and not batch[-1].reaches_end:
                break
            seq = self.waiting[0]
            cached = self.block_manager.find_cached(seq)
            num_pending_tokens = seq.num_tokens - len(cached) * self.block_manager.block_size
            num_tokens = budget.chunk_of(seq, num_pending_tokens)
            if num_tokens == 0 or not self.block_manager.admit(seq, cached, num_tokens):
                break
            self.waiting.popleft()
            if seq.status is SequenceStatus.WAITING:
                seq.num_cached_at_admission = seq.num_cached_tokens
            seq.status = SequenceStatus.RUNNING
            self.running.append(seq)
            batch.append(ScheduledSequence(seq, num_tokens))
            budget.spend(seq, num_tokens)

    def _with_draft(self, item: ScheduledSequence, budget: _Budget) -> ScheduledSequence:
        """A sequence that decodes alone, and as much of a draft as can be of use and has room."""
        seq = item.seq
        if not (item.draws and item.num_scheduled_tokens == 1):
            return item
        num_useful = seq.max_new_tokens - seq.num_output_tokens - 1  # what is drawn after it is the last one
        num_tokens = min(self.speculative_tokens, budget.num_tokens, num_useful)
        draft_token_ids = prompt_lookup.draft(seq.token_ids, num_tokens)
        while draft_token_ids and not self.block_manager.grow(seq, 1 + len(draft_token_ids)):
            draft_token_ids.pop()
        return item._replace(draft_token_ids=tuple(draft_token_ids))

    def _finish(self, seq: Sequence, reason: FinishReason) -> None:
        if seq.status is SequenceStatus.RUNNING:
            self.running.remove(seq)
            self.block_manager.free(seq)
        else:
            self.waiting.remove(seq)
        seq.status = SequenceStatus.FINISHED
        seq.finish_reason = reason
        del self._sequences[seq.seq_id]
