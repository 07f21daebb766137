"""Scheduler: who computes how many tokens in the next step, and what becomes of them afterwards."""

from __future__ import annotations

from collections import deque

from pocketlm.engine.batch import Batch, SampledToken, ScheduledSequence
from pocketlm.engine.block_manager import BlockManager
from pocketlm.engine.sequence import Sequence, SequenceStatus
from pocketlm.outputs import FinishReason, StepOutput

NON_FINITE_LOGITS = (
    "the model's logits were not finite, so no token could be drawn; "
    "try dtype float32, and check that the checkpoint is sound"
)


class Scheduler:
    """First come, first served, within a budget of tokens a step.

    The order of arrival is kept throughout: every running sequence is older than every waiting one,
    and both lists are sorted. So the oldest sequence always gets what it needs, and everyone ends.

    Only the youngest running sequence can have more than one token pending. It got all that was left
    of the budget, so nobody was admitted behind it. In one walk over the running sequences, those
    that decode are therefore served before the chunk of a prefill, and before anyone waiting.
    """

    def __init__(self, max_num_seqs: int, max_batch_tokens: int, block_manager: BlockManager) -> None:
        self.max_num_seqs = max_num_seqs
        self.max_batch_tokens = max_batch_tokens
        self.block_manager = block_manager
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_prompt_tokens = 0  # of all sequences added
        self.num_output_tokens = 0
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
        budget = self.max_batch_tokens
        preempted_before = self.num_preemptions
        for seq in self.running:  # oldest first; _make_room may take sequences off the end
            num_tokens = min(seq.num_pending_tokens, budget)
            if self._make_room(seq, num_tokens):
                batch.append(ScheduledSequence(seq, num_tokens))
                budget -= num_tokens
        everyone_has_room = len(batch) == len(self.running) and self.num_preemptions == preempted_before
        if everyone_has_room:
            self._admit(batch, budget)
        return batch

    def update(self, batch: Batch, sampled: list[SampledToken | None]) -> list[StepOutput]:
        """Record that `batch` was computed; `sampled` has a token for each sequence that reached its end."""
        outputs = []
        for (seq, num_tokens), token in zip(batch, sampled, strict=True):
            if token is None:
                self.block_manager.commit(seq, num_tokens)
            elif token.token_id is None:
                outputs.append(self.fail(seq, NON_FINITE_LOGITS))
            else:
                self.block_manager.commit(seq, num_tokens)
                finish_reason = seq.append(token.token_id)
                self.num_output_tokens += 1
                if finish_reason is not None:
                    self._finish(seq, finish_reason)
                outputs.append(StepOutput(seq.seq_id, token.token_id, finish_reason, token.logprobs))
        return outputs

    def fail(self, seq: Sequence, error: str) -> StepOutput:
        """End a sequence that cannot go on; `error` tells the caller why."""
        self._finish(seq, FinishReason.ERROR)
        return StepOutput(seq.seq_id, None, FinishReason.ERROR, error=error)

    def fail_all(self, error: str) -> None:
        for seq in list(self._sequences.values()):
            self.fail(seq, error)

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
        seq.status = SequenceStatus.WAITING
        self.waiting.appendleft(seq)
        self.num_preemptions += 1

    def _admit(self, batch: Batch, budget: int) -> None:
        """Start waiting sequences for which there are tokens, seats and blocks now."""
        while self.waiting and budget > 0 and len(self.running) < self.max_num_seqs:
            seq = self.waiting[0]
            cached = self.block_manager.find_cached(seq)
            num_tokens = min(seq.num_tokens - len(cached) * self.block_manager.block_size, budget)
            if not self.block_manager.admit(seq, cached, num_tokens):
                break
            self.waiting.popleft()
            seq.status = SequenceStatus.RUNNING
            self.running.append(seq)
            batch.append(ScheduledSequence(seq, num_tokens))
            budget -= num_tokens

    def _finish(self, seq: Sequence, reason: FinishReason) -> None:
        if seq.status is SequenceStatus.RUNNING:
            self.running.remove(seq)
            self.block_manager.free(seq)
        else:
            self.waiting.remove(seq)
        seq.status = SequenceStatus.FINISHED
        seq.finish_reason = reason
        del self._sequences[seq.seq_id]
