from __future__ import annotations

from dataclasses import replace

import numpy as np
from fake_decoder import FakeDecoder, expected_prompt_logprobs
from numpy.testing import assert_array_equal

from pocketlm.engine.batch import Batch, ComputedSequence, ScheduledSequence
from pocketlm.engine.runner import Draws, Runner, forward_inputs
from pocketlm.engine.sequence import Sequence
from pocketlm.kernels.inputs import Float32Array, ForwardInputs, SamplingInputs, SamplingOutputs
from pocketlm.outputs import TokenLogprobs
from pocketlm.sampling import MAX_SEED, SamplingParams


def make_sequence(
    num_prompt_tokens: int = 3,
    params: SamplingParams | None = None,
    *,
    output: tuple[int, ...] = (),
    seed: int = 0,
    eos_token_ids: tuple[int, ...] = (),
    max_new_tokens: int = 9,
) -> Sequence:
    """The prompt is 0, 1, 2, ..."""
    seq = Sequence(
        0,
        list(range(num_prompt_tokens)),
        params or SamplingParams(),
        seed=seed,
        max_new_tokens=max_new_tokens,
        eos_token_ids=eos_token_ids,
    )
    seq.token_ids += output
    return seq


def scheduled(
    seq: Sequence, num_computed: int, num_scheduled: int, block_table: list[int]
) -> ScheduledSequence:
    seq.num_computed_tokens = num_computed
    seq.block_table = block_table
    return ScheduledSequence(seq, num_scheduled)


def inputs_of(batch: Batch) -> ForwardInputs:
    return forward_inputs(batch, [item.num_draws for item in batch])


def sampling_inputs(sequences: list[Sequence]) -> SamplingInputs:
    return Draws(sequences).inputs()


def test_forward_inputs_of_a_whole_prompt_a_chunk_and_a_decode_step() -> None:
    inputs = inputs_of(
        [
            scheduled(make_sequence(3), 0, 3, [5]),
            scheduled(make_sequence(40), 14, 4, [7, 2]),
            scheduled(make_sequence(33, output=(90,)), 33, 1, [9, 1, 4]),
        ]
    )
    assert_array_equal(inputs.token_ids, [0, 1, 2, 14, 15, 16, 17, 90])
    assert_array_equal(inputs.positions, [0, 1, 2, 14, 15, 16, 17, 33])
    assert_array_equal(inputs.slot_mapping, [80, 81, 82, 126, 127, 32, 33, 65])
    assert_array_equal(inputs.block_tables, [[5, 0, 0], [7, 2, 0], [9, 1, 4]])
    assert_array_equal(inputs.context_lens, [3, 18, 34])
    assert_array_equal(inputs.query_starts, [0, 3, 7, 8])
    assert_array_equal(inputs.logit_rows, [2, 7])  # the chunk in the middle draws nothing
    assert all(array.dtype == np.int32 for array in inputs)


def test_sampling_inputs_carry_every_parameter() -> None:
    params = SamplingParams(
        temperature=0.5,
        top_k=4,
        top_p=0.75,
        min_p=0.125,
        repetition_penalty=1.5,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        logit_bias={8: 1.0, 3: -2.0},
        min_tokens=2,
        stop_token_ids=[6],
        logprobs=5,
    )
    seq = make_sequence(3, params, output=(4,), seed=MAX_SEED, eos_token_ids=(2,))
    inputs = sampling_inputs([make_sequence(), seq])
    assert_array_equal(inputs.temperature, [1, 0.5])
    assert_array_equal(inputs.top_k, [0, 4])
    assert_array_equal(inputs.top_p, [1, 0.75])
    assert_array_equal(inputs.min_p, [0, 0.125])
    assert_array_equal(inputs.repetition_penalty, [1, 1.5])
    assert_array_equal(inputs.presence_penalty, [0, 0.25])
    assert_array_equal(inputs.frequency_penalty, [0, -0.5])
    assert_array_equal(inputs.seed, np.array([0, MAX_SEED], np.uint64))
    assert_array_equal(inputs.position, [3, 4])
    assert_array_equal(inputs.bias_ids, [8, 3])
    assert_array_equal(inputs.bias_values, [1, -2])
    assert_array_equal(inputs.bias_starts, [0, 0, 2])
    assert_array_equal(inputs.banned_ids, [2, 6])
    assert_array_equal(inputs.banned_starts, [0, 0, 2])
    assert_array_equal(inputs.num_logprobs, [-1, 5])
    for name, array in inputs._asdict().items():
        floats = ("temperature", "top_p", "min_p", "bias_values")
        dtype = np.float32 if name in floats or "penalty" in name else np.int32
        assert array.dtype == (np.uint64 if name == "seed" else dtype), name


class Recorder(FakeDecoder):
    def sample(self, logits: Float32Array, inputs: SamplingInputs) -> SamplingOutputs:
        self.sampled = inputs
        return super().sample(logits, inputs)


def test_what_the_parameters_say_follows_the_sequences_from_step_to_step() -> None:
    decoder = Recorder()
    runner = Runner(decoder, decoder.new_kv_cache(4))
    cold, warm = (make_sequence(3, SamplingParams(temperature=t)) for t in (0.0, 0.5))
    for sequences in ([cold], [cold], [warm], [warm, cold], [cold, warm], [cold]):
        runner.run([scheduled(seq, 2, 1, [block]) for block, seq in enumerate(sequences, 1)])
        assert_array_equal(decoder.sampled.temperature, [seq.params.temperature for seq in sequences])


def test_a_new_sequence_has_its_parameters_as_they_are_when_it_begins() -> None:
    decoder = Recorder()
    runner = Runner(decoder, decoder.new_kv_cache(4))
    logit_bias = {8: 1.0}
    params = SamplingParams(logit_bias=logit_bias)
    for bias in (1.0, 2.0):
        logit_bias[8] = bias
        runner.run([scheduled(make_sequence(3, params), 2, 1, [1])])
        assert_array_equal(decoder.sampled.bias_values, [bias])


def test_a_draft_is_computed_after_the_pending_token_and_drawn_from_at_each_row() -> None:
    item = scheduled(make_sequence(15, output=(90,)), 15, 1, [5, 3])._replace(draft_token_ids=(70, 71))
    inputs = inputs_of([item])
    assert_array_equal(inputs.token_ids, [90, 70, 71])
    assert_array_equal(inputs.positions, [15, 16, 17])
    assert_array_equal(inputs.slot_mapping, [95, 48, 49])
    assert_array_equal(inputs.context_lens, [18])
    assert_array_equal(inputs.logit_rows, [0, 1, 2])
    assert item.seq.token_ids[15:] == [90]


def test_the_rows_of_a_draft_are_drawn_as_if_its_tokens_had_been_drawn() -> None:
    """Position, history and banned tokens of each row are those of a sequence that long."""
    decoder = FakeDecoder()
    runner = Runner(decoder, decoder.new_kv_cache(8))
    params = SamplingParams(
        presence_penalty=0.5, min_tokens=3, stop_token_ids=[6], logprobs=2, temperature=0.7
    )
    draft = (7, 6, 8)
    supposed = [make_sequence(3, params, output=(4, *draft[:length]), seed=5) for length in range(4)]
    [expected] = zip(*[runner.run([scheduled(seq, 0, seq.num_tokens, [2])]) for seq in supposed], strict=True)
    item = scheduled(make_sequence(3, params, output=(4,), seed=5), 0, 4, [1])
    [computed] = runner.run([item._replace(draft_token_ids=draft)])
    assert (computed._replace(after_draft=()), *computed.after_draft) == expected
    assert len({one.token_id for one in expected}) > 1

    rows = sampling_inputs([item.seq.supposing(draft[:length]) for length in range(4)])
    assert_array_equal(rows.position, [4, 5, 6, 7])
    assert_array_equal(rows.history_starts, [0, 4, 9, 15, 22])
    assert_array_equal(rows.num_prompt_tokens, [3, 3, 3, 3])
    assert_array_equal(rows.banned_starts, [0, 1, 2, 2, 2])  # none once there are min_tokens


def test_only_rows_with_penalties_carry_a_history() -> None:
    plain = make_sequence(3, output=(9,))
    penalized = [
        make_sequence(2, params, output=(7,))
        for params in (
            SamplingParams(repetition_penalty=0.5),
            SamplingParams(presence_penalty=0.5),
            SamplingParams(frequency_penalty=0.5),
        )
    ]
    inputs = sampling_inputs([plain, *penalized, plain])
    assert_array_equal(inputs.history, [0, 1, 7] * 3)
    assert_array_equal(inputs.history_starts, [0, 0, 3, 6, 9, 9])
    assert_array_equal(inputs.num_prompt_tokens, [0, 2, 2, 2, 0])


def test_the_random_number_depends_on_the_absolute_position() -> None:
    """A preempted sequence computes prompt and output again in one go and must draw the same token."""
    decoding = make_sequence(3, output=(4, 5))
    decoding.num_computed_tokens = 4
    recomputed = make_sequence(3, output=(4, 5))
    inputs = sampling_inputs([decoding, recomputed])
    assert_array_equal(inputs.position, [5, 5])


def test_a_batch_that_reaches_no_end_is_computed_all_the_same() -> None:
    decoder = FakeDecoder()
    runner = Runner(decoder, decoder.new_kv_cache(4))
    seq = make_sequence(9)
    assert runner.run([scheduled(seq, 0, 4, [1])]) == [ComputedSequence()]
    assert runner.run([scheduled(seq, 4, 4, [1])]) == [ComputedSequence()]
    assert [len(inputs.logit_rows) for inputs in decoder.batches] == [0, 0]


def test_tokens_go_to_the_sequences_that_reached_their_end() -> None:
    decoder = FakeDecoder()
    runner = Runner(decoder, decoder.new_kv_cache(8))
    greedy = SamplingParams(temperature=0)
    items = [
        scheduled(make_sequence(3, greedy), 0, 3, [1]),
        scheduled(make_sequence(9, greedy), 0, 5, [2]),
        scheduled(make_sequence(6, greedy), 0, 6, [3]),
    ]
    together = runner.run(items)
    assert together[1] == ComputedSequence()
    assert [together[0], together[2]] == [runner.run([item])[0] for item in (items[0], items[2])]
    assert together[0] != together[2]


def test_non_finite_logits_are_no_token() -> None:
    decoder = FakeDecoder(nan_token_id=2)
    runner = Runner(decoder, decoder.new_kv_cache(4))
    assert runner.run([scheduled(make_sequence(3), 0, 3, [1])]) == [ComputedSequence(is_finite=False)]


def test_logprobs_are_reported_as_asked_for_each_sequence() -> None:
    decoder = FakeDecoder()
    runner = Runner(decoder, decoder.new_kv_cache(4))
    greedy = SamplingParams(temperature=0)
    params = [greedy, replace(greedy, logprobs=2), replace(greedy, logprobs=0)]
    tokens = runner.run(
        [scheduled(make_sequence(3, p), 0, 3, [block]) for block, p in enumerate(params)]
    )  # the same prompt three times
    none, two, zero = (token.logprobs for token in tokens)
    assert none is None
    assert two is not None and zero is not None
    assert two.token_ids[:2] == (tokens[0].token_id,) * 2
    assert two.ranks == (1, 1, 2)
    assert two.logprobs[0] == two.logprobs[1] > two.logprobs[2]
    assert zero == TokenLogprobs(two.token_ids[:1], two.logprobs[:1], two.ranks[:1])


# The logits of prompts.

REPORTING = SamplingParams(temperature=0, prompt_logprobs=2)


def test_the_rows_of_those_who_draw_come_first_then_those_of_prompts() -> None:
    inputs = inputs_of(
        [
            scheduled(make_sequence(4, REPORTING), 0, 4, [5]),  # rows 0 to 3: reports 0, 1, 2 and draws
            scheduled(make_sequence(3), 0, 3, [6]),  # rows 4 to 6: draws
            scheduled(make_sequence(3, max_new_tokens=0), 0, 3, [7]),  # rows 7 to 9: draws nothing
            scheduled(make_sequence(30, REPORTING), 0, 5, [8]),  # rows 10 to 14: reports them all
        ]
    )
    assert_array_equal(inputs.logit_rows, [3, 6, 0, 1, 2, 10, 11, 12, 13, 14])


def test_prompt_logprobs_go_to_the_sequences_that_asked_whatever_is_beside_them() -> None:
    decoder = FakeDecoder()
    runner = Runner(decoder, decoder.new_kv_cache(8))
    greedy = SamplingParams(temperature=0)
    ending = replace(REPORTING, prompt_logprobs=0)
    asking = scheduled(make_sequence(6, REPORTING), 0, 6, [1])
    plain = scheduled(make_sequence(5, greedy), 0, 5, [2])
    reporting_only = scheduled(make_sequence(9, ending, max_new_tokens=0), 0, 9, [3])
    first, second, third = runner.run([asking, plain, reporting_only])
    prompt = list(range(9))
    assert first.prompt_logprobs == expected_prompt_logprobs(prompt[:6], REPORTING)
    assert third == ComputedSequence(None, None, expected_prompt_logprobs(prompt, ending) or ())
    assert not second.prompt_logprobs
    assert [first.token_id, second.token_id] == [
        runner.run([scheduled(make_sequence(n, greedy), 0, n, [4])])[0].token_id for n in (6, 5)
    ]


def test_a_batch_of_chunks_alone_reports_its_rows() -> None:
    decoder = FakeDecoder()
    runner = Runner(decoder, decoder.new_kv_cache(4))
    seq = make_sequence(9, REPORTING)
    [computed] = runner.run([scheduled(seq, 0, 4, [1])])
    expected = expected_prompt_logprobs(list(range(9)), REPORTING)
    assert expected is not None
    assert computed == ComputedSequence(prompt_logprobs=expected[:4])


def test_non_finite_logits_of_a_prompt_are_found_where_they_are() -> None:
    decoder = FakeDecoder(nan_token_id=2)
    runner = Runner(decoder, decoder.new_kv_cache(8))
    computed = runner.run(
        [
            scheduled(make_sequence(2, REPORTING), 0, 2, [1]),
            scheduled(make_sequence(6, REPORTING), 0, 6, [2]),
            scheduled(make_sequence(6), 0, 6, [3]),  # draws from a row that is finite
        ]
    )
    assert [one.is_finite for one in computed] == [True, False, True]
    assert computed[1] == ComputedSequence(is_finite=False)
