from __future__ import annotations

import zlib
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pocketlm.engine.batch import Batch, ComputedSequence, ScheduledSequence
from pocketlm.engine.block_manager import BlockManager
from pocketlm.engine.scheduler import PROMPT_LOGPROBS_CHUNK, Scheduler
from pocketlm.engine.sequence import Sequence, SequenceStatus
from pocketlm.errors import NonFiniteLogits
from pocketlm.outputs import FinishReason, StepOutput, TokenLogprobs
from pocketlm.sampling import SamplingParams

BLOCK_SIZE = 4
EOS = 2


def make_scheduler(
    *,
    max_num_seqs: int = 8,
    max_batch_tokens: int = 16,
    num_blocks: int = 100,
    prefix_caching: bool = False,
    speculative_tokens: int = 0,
) -> Scheduler:
    return Scheduler(
        max_num_seqs,
        max_batch_tokens,
        BlockManager(num_blocks, BLOCK_SIZE, prefix_caching),
        speculative_tokens=speculative_tokens,
    )


def make_sequence(
    seq_id: int, num_prompt_tokens: int, *, max_new_tokens: int = 100, prompt_logprobs: int | None = None
) -> Sequence:
    """A prompt that begins like no other's."""
    params = SamplingParams(prompt_logprobs=prompt_logprobs)
    return Sequence(seq_id, [seq_id] * num_prompt_tokens, params, seed=0, max_new_tokens=max_new_tokens)


def run_step(scheduler: Scheduler, token_id: int | None = 0) -> tuple[dict[int, int], list[StepOutput]]:
    """One step in which each sequence that can draws `token_id`: {seq_id: tokens scheduled}, outputs."""
    batch = scheduler.schedule()
    scheduled = {item.seq.seq_id: item.num_scheduled_tokens for item in batch}
    computed = [
        ComputedSequence(
            token_id if item.draws else None,
            None,
            [position_logprobs(position) for position in item.prompt_logits],
            is_finite=token_id is not None,
        )
        for item in batch
    ]
    return scheduled, scheduler.update(batch, computed)


def position_logprobs(position: int) -> TokenLogprobs:
    """Stands for what the logits at a position of a prompt say."""
    return TokenLogprobs((position,), (0.0,), (1,))


def test_nothing_to_do_is_an_empty_batch() -> None:
    scheduler = make_scheduler()
    assert not scheduler.has_work
    assert scheduler.schedule() == []


def test_prompts_are_computed_together_and_then_decode_one_token_a_step() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, 5))
    scheduler.add(make_sequence(1, 3))
    scheduled, outputs = run_step(scheduler)
    assert scheduled == {0: 5, 1: 3}
    assert outputs == [StepOutput(0, 0), StepOutput(1, 0)]
    assert run_step(scheduler)[0] == {0: 1, 1: 1}


def test_a_long_prompt_is_computed_in_chunks_and_draws_only_after_the_last() -> None:
    scheduler = make_scheduler(max_batch_tokens=4)
    scheduler.add(make_sequence(0, 10))
    steps = [run_step(scheduler) for _ in range(4)]
    assert [scheduled for scheduled, _ in steps] == [{0: 4}, {0: 4}, {0: 2}, {0: 1}]
    assert [len(outputs) for _, outputs in steps] == [0, 0, 1, 1]


def test_decoding_goes_before_prefill_within_the_budget() -> None:
    scheduler = make_scheduler(max_batch_tokens=4)
    scheduler.add(make_sequence(0, 2))
    scheduler.add(make_sequence(1, 8))
    scheduler.add(make_sequence(2, 2))
    steps = [run_step(scheduler)[0] for _ in range(4)]
    assert steps == [{0: 2, 1: 2}, {0: 1, 1: 3}, {0: 1, 1: 3}, {0: 1, 1: 1, 2: 2}]


def test_waiting_sequences_start_in_order_of_arrival_when_a_seat_is_free() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for seq_id in range(4):
        scheduler.add(make_sequence(seq_id, 2, max_new_tokens=1 + seq_id))
    assert [list(run_step(scheduler)[0]) for _ in range(4)] == [[0, 1], [1, 2], [2, 3], [2, 3]]


def test_a_waiting_sequence_is_not_overtaken_by_one_that_would_fit() -> None:
    scheduler = make_scheduler(num_blocks=4)
    for seq_id, num_prompt_tokens in enumerate((9, 9, 1)):
        scheduler.add(make_sequence(seq_id, num_prompt_tokens))
    assert run_step(scheduler)[0] == {0: 9}


def test_when_blocks_run_out_the_youngest_sits_out_then_is_preempted_then_comes_back() -> None:
    scheduler = make_scheduler(num_blocks=4)
    old, young = make_sequence(0, 8, max_new_tokens=7), make_sequence(1, 4)
    scheduler.add(old)
    scheduler.add(young)
    assert run_step(scheduler, 5)[0] == {0: 8, 1: 4}  # 2 blocks and 1
    for _ in range(4):  # the old one takes the last block; the young one has its own full, and waits
        assert run_step(scheduler, 6)[0] == {0: 1}
    assert (scheduler.num_preemptions, young.status) == (0, SequenceStatus.RUNNING)

    assert run_step(scheduler, 6)[0] == {0: 1}  # the old one takes the young one's block
    assert (scheduler.num_preemptions, young.status) == (1, SequenceStatus.PREEMPTED)
    assert (young.block_table, young.output_token_ids) == ([], [5])

    assert run_step(scheduler, 6)[1] == [StepOutput(0, 6, FinishReason.LENGTH)]
    assert run_step(scheduler, 7) == ({1: 5}, [StepOutput(1, 7)])
    assert young.output_token_ids == [5, 7]


def test_a_preempted_sequence_comes_back_before_those_that_came_later() -> None:
    scheduler = make_scheduler(num_blocks=5, max_num_seqs=2)
    scheduler.add(make_sequence(0, 8, max_new_tokens=7))
    scheduler.add(make_sequence(1, 8))
    scheduler.add(make_sequence(2, 1))
    while scheduler.num_preemptions == 0:
        run_step(scheduler)
    assert [seq.seq_id for seq in scheduler.waiting] == [1, 2]


def test_nobody_is_admitted_in_a_step_that_preempted() -> None:
    """The one preempted would fit again for a chunk, only to be preempted once more."""
    scheduler = make_scheduler(num_blocks=5, max_batch_tokens=4)
    scheduler.add(make_sequence(0, 8))
    scheduler.add(make_sequence(1, 8))
    while scheduler.num_preemptions == 0:
        scheduled, _ = run_step(scheduler)
    assert scheduled == {0: 1}
    assert scheduler.block_manager.num_free_blocks == 1
    assert run_step(scheduler)[0] == {0: 1, 1: 3}


def test_nobody_is_admitted_while_a_running_sequence_is_short_of_blocks() -> None:
    scheduler = make_scheduler(num_blocks=5, max_batch_tokens=9)
    for seq_id, num_prompt_tokens in enumerate((4, 14, 1)):
        scheduler.add(make_sequence(seq_id, num_prompt_tokens))
    assert run_step(scheduler)[0] == {0: 4, 1: 5}
    assert run_step(scheduler)[0] == {0: 1}
    assert scheduler.block_manager.num_free_blocks == 1  # the second needs two, the third needs one


def test_a_sequence_waits_until_there_are_blocks_for_its_chunk() -> None:
    scheduler = make_scheduler(num_blocks=4)
    scheduler.add(make_sequence(0, 9, max_new_tokens=2))
    scheduler.add(make_sequence(1, 8))
    assert run_step(scheduler)[0] == {0: 9}
    assert run_step(scheduler)[0] == {0: 1}
    assert run_step(scheduler)[0] == {1: 8}


def test_a_finished_sequence_gives_its_blocks_back() -> None:
    scheduler = make_scheduler()
    seq = make_sequence(0, 5, max_new_tokens=1)
    scheduler.add(seq)
    assert run_step(scheduler, 3)[1] == [StepOutput(0, 3, FinishReason.LENGTH)]
    assert (seq.status, seq.finish_reason) == (SequenceStatus.FINISHED, FinishReason.LENGTH)
    assert not scheduler.has_work
    assert scheduler.block_manager.num_free_blocks == 100


def test_a_cached_prefix_is_not_scheduled_again() -> None:
    scheduler = make_scheduler(prefix_caching=True)
    for seq_id in range(2):
        seq = make_sequence(seq_id, 1, max_new_tokens=1)
        seq.token_ids[:] = seq.prompt_token_ids[:] = range(10)
        scheduler.add(seq)
        scheduled, _ = run_step(scheduler)
    assert scheduled == {1: 2}
    assert scheduler.block_manager.prefix_cache_hits == 8


def test_non_finite_logits_end_the_sequence_without_a_token() -> None:
    scheduler = make_scheduler(prefix_caching=True)
    seq = make_sequence(0, 9)
    scheduler.add(seq)
    _, [output] = run_step(scheduler, None)
    assert (output.token_id, output.finish_reason) == (None, FinishReason.ERROR)
    assert isinstance(output.error, NonFiniteLogits)
    assert "not finite" in str(output.error)
    assert seq.output_token_ids == []
    assert not scheduler.has_work
    assert scheduler.block_manager.num_free_blocks == 100
    assert scheduler.block_manager.find_cached(make_sequence(0, 9)) == []  # its keys may be bad as well


def test_abort_drops_a_running_and_a_waiting_sequence() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    running, waiting = make_sequence(0, 5), make_sequence(1, 5)
    scheduler.add(running)
    scheduler.add(waiting)
    run_step(scheduler)
    scheduler.abort(1)
    scheduler.abort(0)
    assert not scheduler.has_work
    assert (running.finish_reason, waiting.finish_reason) == (FinishReason.ABORT, FinishReason.ABORT)
    assert scheduler.block_manager.num_free_blocks == 100
    assert scheduler.schedule() == []


def test_abort_of_an_unknown_or_finished_sequence_has_no_effect() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, 5, max_new_tokens=1))
    run_step(scheduler)
    scheduler.abort(0)
    scheduler.abort(1)
    assert scheduler.block_manager.num_free_blocks == 100


# Prompts whose logits are reported, and answers without a token.


def test_an_answer_of_no_tokens_ends_when_its_prompt_is_computed() -> None:
    scheduler = make_scheduler(max_batch_tokens=4)
    seq = make_sequence(0, 6, max_new_tokens=0)
    scheduler.add(seq)
    assert run_step(scheduler) == ({0: 4}, [])
    assert run_step(scheduler) == ({0: 2}, [StepOutput(0, None, FinishReason.LENGTH)])
    assert (seq.status, seq.output_token_ids) == (SequenceStatus.FINISHED, [])
    assert scheduler.num_output_tokens == 0
    assert scheduler.block_manager.num_free_blocks == 100


def test_prompt_logprobs_come_whole_and_once_with_the_first_token() -> None:
    scheduler = make_scheduler(max_batch_tokens=4)
    scheduler.add(make_sequence(0, 10, prompt_logprobs=0))
    outputs = [output for _ in range(5) for output in run_step(scheduler)[1]]
    expected = [position_logprobs(position) for position in range(9)]
    assert [output.prompt_logprobs for output in outputs] == [expected, None, None]


def test_prompt_logprobs_come_with_an_answer_of_no_tokens() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_sequence(0, 3, max_new_tokens=0, prompt_logprobs=0))
    scheduler.add(make_sequence(1, 1, max_new_tokens=0, prompt_logprobs=0))
    expected = [position_logprobs(0), position_logprobs(1)]
    assert run_step(scheduler)[1] == [
        StepOutput(0, None, FinishReason.LENGTH, prompt_logprobs=expected),
        StepOutput(1, None, FinishReason.LENGTH, prompt_logprobs=[]),  # a first token is predicted by nothing
    ]


def test_a_prompt_whose_logits_are_reported_is_computed_in_small_chunks_and_nobody_overtakes_it() -> None:
    scheduler = make_scheduler(max_batch_tokens=1000, num_blocks=1000)
    scheduler.add(make_sequence(0, 2))
    scheduler.add(make_sequence(1, 2 * PROMPT_LOGPROBS_CHUNK + 5, prompt_logprobs=0))
    scheduler.add(make_sequence(2, 300))
    chunk = PROMPT_LOGPROBS_CHUNK
    assert [run_step(scheduler)[0] for _ in range(3)] == [
        {0: 2, 1: chunk},
        {0: 1, 1: chunk},
        {0: 1, 1: 5, 2: 300},
    ]


def test_many_short_prompts_share_the_rows_of_one_step() -> None:
    scheduler = make_scheduler(max_batch_tokens=1000, num_blocks=1000)
    for seq_id in range(5):
        scheduler.add(make_sequence(seq_id, PROMPT_LOGPROBS_CHUNK // 2 - 4, prompt_logprobs=0))
    scheduler.add(make_sequence(5, 100))
    assert [run_step(scheduler)[0] for _ in range(2)] == [
        {0: 28, 1: 28, 2: 8},
        {0: 1, 1: 1, 2: 20, 3: 28, 4: 16},
    ]


def test_a_prompt_whose_logits_are_reported_finds_nothing_in_the_cache_and_leaves_its_blocks_there() -> None:
    scheduler = make_scheduler(prefix_caching=True)
    for seq_id, prompt_logprobs in enumerate((None, 0, 0, None)):
        seq = make_sequence(seq_id, 1, max_new_tokens=0, prompt_logprobs=prompt_logprobs)
        seq.token_ids[:] = seq.prompt_token_ids[:] = range(8 * (seq_id > 0) + 2)
        scheduler.add(seq)
        scheduled, [output] = run_step(scheduler)
        assert (output.prompt_logprobs is None) == (prompt_logprobs is None)
        assert scheduled == {seq_id: 2 if seq_id in (0, 3) else 10}
        assert seq.num_cached_at_admission == (8 if seq_id == 3 else 0)


def test_after_preemption_rows_already_reported_may_come_from_the_cache() -> None:
    scheduler = make_scheduler(num_blocks=6, max_batch_tokens=9, prefix_caching=True)
    scheduler.add(make_sequence(0, 4, max_new_tokens=9))
    young = make_sequence(1, 20, prompt_logprobs=0)
    scheduler.add(young)
    while scheduler.num_preemptions == 0:
        run_step(scheduler)
    assert young.prompt_logprobs is not None
    num_reported = len(young.prompt_logprobs)
    assert num_reported > BLOCK_SIZE
    assert young.status is SequenceStatus.PREEMPTED
    cached = scheduler.block_manager.find_cached(young)
    assert 0 < len(cached) * BLOCK_SIZE <= num_reported
    outputs = []
    while not outputs:
        outputs = [output for output in run_step(scheduler)[1] if output.seq_id == 1]
    assert outputs[0].prompt_logprobs == [position_logprobs(position) for position in range(19)]
    assert young.num_cached_at_admission == 0


# Drafts: a sequence whose last tokens stood there before is computed further than it is known.


def decoding(prompt: list[int], scheduler: Scheduler, *, max_new_tokens: int = 100) -> Sequence:
    """A sequence that is computed up to the token it has drawn, a 1."""
    seq = Sequence(0, prompt, SamplingParams(), seed=0, max_new_tokens=max_new_tokens, eos_token_ids=(EOS,))
    scheduler.add(seq)
    run_step(scheduler, 1)
    assert (seq.num_pending_tokens, seq.token_ids[-1]) == (1, 1)
    return seq


def draw(scheduler: Scheduler, *token_ids: int | None) -> list[StepOutput]:
    """One step of one sequence that draws these after its last token and those of its draft; None: NaN."""
    first, *others = [ComputedSequence(token_id, is_finite=token_id is not None) for token_id in token_ids]
    batch = scheduler.schedule()
    assert [item.num_draws for item in batch] == [len(token_ids)]
    return scheduler.update(batch, [first._replace(after_draft=tuple(others))])


REPEATING = [1, 1, 3, 4, 5, 6, 7, 8, 9, 1]  # and the 1 that is drawn: 3, 4, 5, ... is the guess


def test_a_draft_is_taken_as_far_as_it_is_drawn_and_the_first_other_token_after_it() -> None:
    scheduler = make_scheduler(speculative_tokens=4)
    seq = decoding(list(REPEATING), scheduler)
    [item] = scheduler.schedule()
    assert (item.num_scheduled_tokens, item.draft_token_ids) == (1, (3, 4, 5, 6))
    assert draw(scheduler, 3, 4, 0, 6, 7) == [StepOutput(0, 3), StepOutput(0, 4), StepOutput(0, 0)]
    assert seq.output_token_ids == [1, 3, 4, 0]
    assert (seq.num_computed_tokens, seq.num_pending_tokens) == (13, 1)
    assert (scheduler.num_draft_tokens, scheduler.num_accepted_tokens) == (4, 2)
    assert scheduler.num_output_tokens == 4


def test_a_draft_that_is_right_gives_a_token_more_and_a_wrong_one_gives_what_there_would_be_without() -> None:
    scheduler = make_scheduler(speculative_tokens=2)
    seq = decoding(list(REPEATING), scheduler)
    assert [output.token_id for output in draw(scheduler, 3, 4, 5)] == [3, 4, 5]
    assert [output.token_id for output in draw(scheduler, 0, 7, 8)] == [0]
    assert seq.output_token_ids == [1, 3, 4, 5, 0]
    assert (scheduler.num_draft_tokens, scheduler.num_accepted_tokens) == (4, 2)


def test_a_draft_ends_with_the_answer() -> None:
    scheduler = make_scheduler(speculative_tokens=3)
    decoding([1, 1, 3, EOS, 5, 1], scheduler)
    outputs = draw(scheduler, 3, EOS, 5, 1)
    assert outputs == [StepOutput(0, 3), StepOutput(0, EOS, FinishReason.STOP)]
    assert not scheduler.has_work
    assert scheduler.block_manager.num_free_blocks == 100
    assert (scheduler.num_draft_tokens, scheduler.num_accepted_tokens) == (3, 2)


def test_a_draft_is_no_longer_than_the_answer_may_become() -> None:
    scheduler = make_scheduler(speculative_tokens=8)
    decoding(list(REPEATING), scheduler, max_new_tokens=4)
    assert [output.finish_reason for output in draw(scheduler, 3, 4, 5)] == [None, None, FinishReason.LENGTH]
    scheduler = make_scheduler(speculative_tokens=8)
    decoding(list(REPEATING), scheduler, max_new_tokens=2)
    assert draw(scheduler, 3) == [StepOutput(0, 3, FinishReason.LENGTH)]


def test_a_draft_is_no_longer_than_the_step_and_the_free_blocks_allow() -> None:
    scheduler = make_scheduler(speculative_tokens=8, max_batch_tokens=3)
    seq = Sequence(0, list(REPEATING), SamplingParams(), seed=0, max_new_tokens=9)
    scheduler.add(seq)
    while seq.num_output_tokens == 0:
        run_step(scheduler, 1)
    assert scheduler.schedule()[0].draft_token_ids == (3, 4)

    scheduler = make_scheduler(speculative_tokens=8, num_blocks=4)  # 16 slots, of which 11 are needed
    decoding(list(REPEATING), scheduler)
    assert scheduler.schedule()[0].draft_token_ids == (3, 4, 5, 6, 7)


def test_there_is_no_draft_in_company_nor_for_a_prompt() -> None:
    scheduler = make_scheduler(speculative_tokens=4)
    scheduler.add(make_sequence(0, 9))
    assert scheduler.schedule()[0].num_tokens == 9
    run_step(scheduler)
    scheduler = make_scheduler(speculative_tokens=4)
    decoding(list(REPEATING), scheduler)
    scheduler.add(make_sequence(1, 2, max_new_tokens=2))
    assert run_step(scheduler)[0] == {0: 1, 1: 2}
    assert [item.num_tokens for item in scheduler.schedule()] == [1, 1]


def test_logits_that_are_not_finite_matter_only_if_the_draft_was_right_so_far() -> None:
    scheduler = make_scheduler(speculative_tokens=2)
    decoding(list(REPEATING), scheduler)
    assert draw(scheduler, 0, None, None) == [StepOutput(0, 0)]

    scheduler = make_scheduler(speculative_tokens=2, prefix_caching=True)
    seq = decoding(list(REPEATING), scheduler)
    drawn, failed = draw(scheduler, 3, None, 5)
    assert (drawn.token_id, drawn.error, failed.token_id) == (3, None, None)
    assert isinstance(failed.error, NonFiniteLogits)
    assert not scheduler.has_work
    again = Sequence(1, [*seq.token_ids, 9], SamplingParams(), seed=0, max_new_tokens=1)
    assert len(scheduler.block_manager.find_cached(again)) == 2  # of 13 tokens, and not the bad one's block


def test_the_prefix_cache_knows_accepted_tokens_only() -> None:
    scheduler = make_scheduler(speculative_tokens=8, prefix_caching=True)
    seq = decoding(list(REPEATING), scheduler)
    block_manager = scheduler.block_manager
    draw(scheduler, 3, 4, 0, *range(6))  # 11 tokens were known, 13 are computed and right

    def num_cached(token_ids: list[int]) -> int:
        other = Sequence(1, [*token_ids, 9], SamplingParams(), seed=0, max_new_tokens=1)
        return len(block_manager.find_cached(other)) * BLOCK_SIZE

    assert num_cached(seq.token_ids) == 12
    assert num_cached([*REPEATING, 1, 3, 4, 5, 6, 7]) == 12
    draw(scheduler, 7)
    draw(scheduler, 7)
    draw(scheduler, 7)  # its tokens take the place of the guess
    assert num_cached(seq.token_ids) == 16
    assert num_cached([*REPEATING, 1, 3, 4, 5, 6, 7]) == 12


def next_token(token_ids: list[int]) -> int:
    """A text that repeats itself often, but not always where its last two tokens do."""
    return zlib.crc32(bytes(token_ids[-3:])) % 10


def after_draft(item: ScheduledSequence) -> tuple[ComputedSequence, ...]:
    """What is drawn after each token of a draft."""
    draft = item.draft_token_ids
    texts = [[*item.seq.token_ids, *draft[: length + 1]] for length in range(len(draft))]
    return tuple(ComputedSequence(next_token(text)) for text in texts)


class RandomSchedule(RuleBasedStateMachine):
    """Any order of adds, steps and aborts, on few blocks and small budgets.

    `slots` plays the KV cache: what position p of a sequence leaves in its slot is the ids up to p, so
    a sequence that reads another's slot, or a stale one, is found out.
    """

    @initialize(
        num_blocks=st.integers(4, 6),
        max_num_seqs=st.integers(1, 4),
        max_batch_tokens=st.integers(1, 12),
        max_prompt_logits=st.integers(1, 12),
        prefix_caching=st.booleans(),
        speculative_tokens=st.sampled_from([0, 1, 3, 9]),
    )
    def start(
        self,
        num_blocks: int,
        max_num_seqs: int,
        max_batch_tokens: int,
        max_prompt_logits: int,
        prefix_caching: bool,
        speculative_tokens: int,
    ) -> None:
        self.block_manager = BlockManager(num_blocks, BLOCK_SIZE, prefix_caching)
        self.scheduler = Scheduler(
            max_num_seqs, max_batch_tokens, self.block_manager, max_prompt_logits, speculative_tokens
        )
        self.slots: dict[int, list[int]] = {}
        self.live: dict[int, Sequence] = {}
        self.num_added = 0

    @rule(
        # Few different prompts, so that many begin alike.
        prompt=st.lists(st.sampled_from([0, 0, 0, 1]), min_size=1, max_size=15),
        max_new_tokens=st.integers(0, 12),
        prompt_logprobs=st.sampled_from([None, None, 0]),
    )
    def add(self, prompt: list[int], max_new_tokens: int, prompt_logprobs: int | None) -> None:
        room = self.block_manager.num_blocks * BLOCK_SIZE - len(prompt)
        seq = Sequence(
            self.num_added,
            prompt,
            SamplingParams(prompt_logprobs=prompt_logprobs),
            seed=0,
            max_new_tokens=min(max_new_tokens, room),
            eos_token_ids=(EOS,),
        )
        self.num_added += 1
        self.live[seq.seq_id] = seq
        self.scheduler.add(seq)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        seq = self.live.pop(data.draw(st.sampled_from(sorted(self.live))))
        self.scheduler.abort(seq.seq_id)
        assert (seq.status, seq.block_table) == (SequenceStatus.FINISHED, [])

    @precondition(lambda self: self.live)
    @rule(num_steps=st.integers(1, 8))
    def steps(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.step()

    def step(self) -> None:
        batch = self.scheduler.schedule()
        assert bool(batch) == bool(self.live)
        self.check_batch(batch)
        self.compute(batch)
        computed = [
            ComputedSequence(
                next_token(item.seq.token_ids) if item.draws else None,
                None,
                [position_logprobs(position) for position in item.prompt_logits],
                after_draft=after_draft(item),
            )
            for item in batch
        ]
        firsts = {item.seq.seq_id for item in batch if item.seq.num_output_tokens == 0}
        for output in self.scheduler.update(batch, computed):
            self.check_prompt_logprobs(output, is_first=output.seq_id in firsts)
            firsts.discard(output.seq_id)
            if output.finish_reason is not None:
                self.check_answer(self.live.pop(output.seq_id), output.finish_reason)

    def check_batch(self, batch: Batch) -> None:
        assert sum(item.num_tokens for item in batch) <= self.scheduler.max_batch_tokens
        assert sum(len(item.prompt_logits) for item in batch) <= self.scheduler.max_prompt_logits
        assert len(batch) <= self.scheduler.max_num_seqs
        assert [item.seq.seq_id for item in batch] == sorted({item.seq.seq_id for item in batch})
        uses = Counter(block for seq in self.live.values() for block in seq.block_table)
        for item in batch:
            seq = item.seq
            assert 1 <= item.num_scheduled_tokens <= seq.num_pending_tokens
            if item.draft_token_ids:
                assert item.draws and len(batch) == 1
                assert len(item.draft_token_ids) <= self.scheduler.speculative_tokens
                assert seq.num_output_tokens + item.num_draws <= seq.max_new_tokens
            end = seq.num_computed_tokens + item.num_tokens
            assert len(seq.block_table) * BLOCK_SIZE >= end
            for position in range(seq.num_computed_tokens, end):
                assert uses[seq.block_table[position // BLOCK_SIZE]] == 1, "written by one, used by others"

    def compute(self, batch: Batch) -> None:
        for item in batch:
            seq = item.seq
            token_ids = [*seq.token_ids, *item.draft_token_ids]
            for position in range(seq.num_computed_tokens + item.num_tokens):
                slot = seq.block_table[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE
                if position >= seq.num_computed_tokens:
                    self.slots[slot] = token_ids[: position + 1]
                assert self.slots[slot] == token_ids[: position + 1]

    def check_prompt_logprobs(self, output: StepOutput, *, is_first: bool) -> None:
        seq = self.live[output.seq_id]
        expected = [position_logprobs(position) for position in range(seq.num_prompt_tokens - 1)]
        wanted = is_first and seq.params.prompt_logprobs is not None
        assert output.prompt_logprobs == (expected if wanted else None)

    def check_answer(self, seq: Sequence, reason: FinishReason) -> None:
        token_ids = list(seq.prompt_token_ids)
        for _ in range(seq.max_new_tokens):
            token_ids.append(next_token(token_ids))
            if token_ids[-1] == EOS:
                break
        assert seq.token_ids == token_ids
        assert reason is (FinishReason.STOP if token_ids[-1] == EOS else FinishReason.LENGTH)

    @invariant()
    def books_balance(self) -> None:
        self.block_manager.check_integrity(self.live.values())
        assert self.scheduler.has_work == bool(self.live)

    @invariant()
    def order_of_arrival_is_kept(self) -> None:
        running, waiting = self.scheduler.running, self.scheduler.waiting
        assert [seq.seq_id for seq in (*running, *waiting)] == sorted(self.live)
        assert all(seq.num_pending_tokens == 1 for seq in running[:-1])
        assert all(seq.block_table == [] for seq in waiting)

    def teardown(self) -> None:
        """Everyone finishes: each step computes at least one token of the oldest sequence."""
        num_steps = sum(seq.num_prompt_tokens + seq.max_new_tokens for seq in self.live.values())
        while self.live:
            assert num_steps > 0
            num_steps -= 1
            self.step()
            self.books_balance()
            self.order_of_arrival_is_kept()
        assert self.block_manager.num_free_blocks == self.block_manager.num_blocks


# Derandomized: the same examples on every run, so that a failure is everybody's failure.
RandomSchedule.TestCase.settings = settings(
    max_examples=200, stateful_step_count=30, deadline=None, derandomize=True, database=None
)
test_random_schedule = RandomSchedule.TestCase
