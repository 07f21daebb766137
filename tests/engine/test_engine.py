from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from fake_decoder import (
    MAX_POSITIONS,
    VOCAB_SIZE,
    FakeDecoder,
    expected_output,
    expected_prompt_logprobs,
)

from pocketlm.engine import prompt_lookup
from pocketlm.engine.engine import Engine
from pocketlm.engine.scheduler import PROMPT_LOGPROBS_CHUNK
from pocketlm.errors import (
    ConfigError,
    ContextLengthExceeded,
    EngineDead,
    EngineError,
    InvalidRequest,
    NonFiniteLogits,
)
from pocketlm.outputs import FinishReason, StepOutput, TokenLogprobs
from pocketlm.sampling import MAX_SEED, SamplingParams

EOS = 7


def make_engine(
    decoder: FakeDecoder | None = None,
    *,
    num_blocks: int = 64,
    max_model_len: int = MAX_POSITIONS,
    max_num_seqs: int = 8,
    max_batch_tokens: int = 64,
    prefix_caching: bool = True,
    speculative_tokens: int = 0,
) -> Engine:
    return Engine(
        decoder or FakeDecoder(),
        eos_token_ids=(EOS,),
        num_blocks=num_blocks,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_batch_tokens=max_batch_tokens,
        prefix_caching=prefix_caching,
        speculative_tokens=speculative_tokens,
    )


def run_to_end(engine: Engine) -> dict[int, list[StepOutput]]:
    outputs: dict[int, list[StepOutput]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.seq_id, []).append(output)
    return outputs


def generate(engine: Engine, prompt: list[int], params: SamplingParams) -> list[int | None]:
    seq_id = engine.add(prompt, params, seed=0)
    return [output.token_id for output in run_to_end(engine)[seq_id]]


def all_is_free(engine: Engine) -> bool:
    stats = engine.stats()
    return (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)


# The answer depends on the request alone.


@dataclass
class Request:
    prompt: list[int]
    params: SamplingParams
    seed: int

    @property
    def expected(self) -> list[int]:
        return expected_output(self.prompt, self.params, seed=self.seed, eos_token_ids=(EOS,))

    @property
    def expected_prompt_logprobs(self) -> list[TokenLogprobs] | None:
        return expected_prompt_logprobs(self.prompt, self.params)


@dataclass
class Answer:
    token_ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[list[TokenLogprobs] | None] = field(default_factory=list)  # of each output
    finish_reason: FinishReason | None = None

    def add(self, output: StepOutput) -> None:
        assert self.finish_reason is None and output.error is None
        self.token_ids += [] if output.token_id is None else [output.token_id]
        self.prompt_logprobs.append(output.prompt_logprobs)
        self.finish_reason = output.finish_reason

    def check(self, request: Request) -> None:
        """It must be what the request alone asks for."""
        assert self.token_ids == request.expected
        first, *others = self.prompt_logprobs
        assert first == request.expected_prompt_logprobs
        assert others == [None] * len(others)
        assert self.finish_reason is not None


def random_requests(rng: random.Random, num_requests: int) -> list[Request]:
    """Some prompts begin alike, some end in a few tokens, some draw at random."""
    prefixes = [rng.choices(range(VOCAB_SIZE), k=length) for length in (0, 0, 17, 40)]

    def random_request() -> Request:
        max_tokens = rng.choice([0, rng.randint(1, 40), rng.randint(1, 40)])
        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=rng.choice([0.0, 1.0]),
            ignore_eos=rng.random() < 0.5,
            stop_token_ids=rng.sample(range(VOCAB_SIZE), k=2),
            min_tokens=rng.choice([0, min(1, max_tokens)]),
            prompt_logprobs=rng.choice([None, None, 0, 3]),
        )
        prompt = rng.choice(prefixes) + rng.choices(range(VOCAB_SIZE), k=rng.randint(1, 20))
        return Request(prompt, params, seed=rng.randrange(2**64))

    return [random_request() for _ in range(num_requests)]


@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize("num_blocks", [7, 64])
@pytest.mark.parametrize("max_batch_tokens", [1, 3, 16, 500])
def test_answers_do_not_depend_on_batch_chunks_blocks_or_cache(
    max_batch_tokens: int, num_blocks: int, prefix_caching: bool
) -> None:
    rng = random.Random(max_batch_tokens)
    requests = random_requests(rng, 30)
    engine = make_engine(
        num_blocks=num_blocks,
        max_model_len=112,
        max_batch_tokens=max_batch_tokens,
        prefix_caching=prefix_caching,
    )
    answers: dict[int, Answer] = {}
    for _ in range(2):  # the second time with a warm cache and in another order
        rng.shuffle(requests)
        remaining = list(requests)
        asked = {}
        while remaining or engine.has_work:
            if remaining and rng.random() < 0.3:
                request = remaining.pop()
                seq_id = engine.add(request.prompt, request.params, seed=request.seed)
                asked[seq_id] = request
                answers[seq_id] = Answer()
            for output in engine.step():
                answers[output.seq_id].add(output)
        for seq_id, request in asked.items():
            answers[seq_id].check(request)
    assert all_is_free(engine)
    stats = engine.stats()
    assert (stats.num_preemptions > 0) == (num_blocks == 7 and max_batch_tokens > 1)
    assert (stats.prefix_cache_hits > 0) == prefix_caching


def guess_with_mistakes(requests: list[Request], rng: random.Random) -> Callable[[list[int], int], list[int]]:
    """Stands for prompt look-up: guesses the answers to these requests, but some of the tokens wrong."""
    texts = [request.prompt + request.expected for request in requests]

    def draft(token_ids: list[int], num_tokens: int) -> list[int]:
        following = [text[len(token_ids) :] for text in texts if text[: len(token_ids)] == token_ids]
        guess = rng.choice(following)[: max(0, num_tokens)]
        return [rng.randrange(VOCAB_SIZE) if rng.random() < 0.2 else token_id for token_id in guess]

    return draft


@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize("max_num_seqs", [1, 3])
@pytest.mark.parametrize("max_batch_tokens", [3, 16])
def test_answers_do_not_depend_on_drafts(
    monkeypatch: pytest.MonkeyPatch, max_batch_tokens: int, max_num_seqs: int, prefix_caching: bool
) -> None:
    """Requests that come and are aborted at any time, on few blocks."""
    rng = random.Random(max_batch_tokens)
    requests = random_requests(rng, 60)
    monkeypatch.setattr(prompt_lookup, "draft", guess_with_mistakes(requests, rng))
    engine = make_engine(
        num_blocks=7,
        max_model_len=112,
        max_num_seqs=max_num_seqs,
        max_batch_tokens=max_batch_tokens,
        prefix_caching=prefix_caching,
        speculative_tokens=6,
    )
    answers: dict[int, Answer] = {}
    asked: dict[int, Request] = {}
    remaining = list(requests)
    while remaining or engine.has_work:
        if remaining and rng.random() < 0.05:
            request = remaining.pop()
            seq_id = engine.add(request.prompt, request.params, seed=request.seed)
            asked[seq_id], answers[seq_id] = request, Answer()
        if answers and rng.random() < 0.02:
            aborted = rng.choice(list(answers))
            engine.abort(aborted)
            del answers[aborted]
        for output in engine.step():
            answers[output.seq_id].add(output)
    assert len(answers) > 20
    for seq_id, answer in answers.items():
        answer.check(asked[seq_id])
    assert all_is_free(engine)
    stats = engine.stats()
    assert stats.num_output_tokens / 10 < stats.num_accepted_tokens < stats.num_draft_tokens


def test_abort_at_any_step_frees_all_and_leaves_the_others_alone() -> None:
    rng = random.Random(0)
    requests = random_requests(rng, 6)
    for num_steps in range(30):
        engine = make_engine(num_blocks=7, max_model_len=112, max_batch_tokens=8)
        seq_ids = [engine.add(r.prompt, r.params, seed=r.seed) for r in requests]
        answers = {seq_id: Answer() for seq_id in seq_ids}
        for step in range(1000):
            if step == num_steps:
                for seq_id in seq_ids[::2]:
                    engine.abort(seq_id)
                    answers.pop(seq_id)
            for output in engine.step():
                answers[output.seq_id].add(output)
        assert sorted(answers) == seq_ids[1::2]
        for seq_id, request in zip(seq_ids[1::2], requests[1::2], strict=True):
            answers[seq_id].check(request)
        assert all_is_free(engine)


# How an answer ends.


def test_max_tokens_ends_with_length() -> None:
    engine = make_engine()
    engine.add([1, 2, 3], SamplingParams(temperature=0, max_tokens=4, ignore_eos=True), seed=0)
    [outputs] = run_to_end(engine).values()
    assert [output.finish_reason for output in outputs] == [None, None, None, FinishReason.LENGTH]


def test_max_model_len_bounds_prompt_and_answer() -> None:
    engine = make_engine(max_model_len=20)
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    assert len(generate(engine, [1] * 15, params)) == 5
    assert len(generate(engine, [1] * 19, params)) == 1


def test_an_answer_may_fill_the_last_slot_of_the_cache() -> None:
    engine = make_engine(num_blocks=2, max_model_len=32, max_batch_tokens=5)
    params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
    expected = expected_output([1, 2, 3], params, max_model_len=32)
    assert generate(engine, [1, 2, 3], params) == expected
    assert len(expected) == 29


def free_running(num_tokens: int) -> list[int]:
    """What [1, 2, 3] is continued with if nothing stops it."""
    return expected_output([1, 2, 3], SamplingParams(temperature=0, max_tokens=num_tokens))


def test_a_stop_token_ends_with_stop_and_is_kept() -> None:
    tokens = free_running(5)
    engine = make_engine()
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True, stop_token_ids=[tokens[2]])
    engine.add([1, 2, 3], params, seed=0)
    [outputs] = run_to_end(engine).values()
    assert [output.token_id for output in outputs] == tokens[:3]
    assert outputs[-1].finish_reason is FinishReason.STOP


def test_eos_ends_unless_it_is_ignored() -> None:
    tokens = free_running(5)
    engine = Engine(
        FakeDecoder(),
        eos_token_ids=(VOCAB_SIZE - 1, tokens[1]),
        num_blocks=4,
        max_model_len=64,
        max_num_seqs=1,
        max_batch_tokens=8,
        prefix_caching=True,
        speculative_tokens=0,
    )
    assert generate(engine, [1, 2, 3], SamplingParams(temperature=0, max_tokens=5)) == tokens[:2]
    ignoring = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    assert generate(engine, [1, 2, 3], ignoring) == tokens


def test_min_tokens_keeps_end_tokens_out_until_there_are_enough() -> None:
    tokens = free_running(5)
    params = SamplingParams(temperature=0, max_tokens=9, min_tokens=4, stop_token_ids=tokens)
    expected = expected_output([1, 2, 3], params, eos_token_ids=(EOS,))
    assert expected[0] != tokens[0]
    assert not {*expected[:4]} & {*tokens, EOS}
    assert generate(make_engine(), [1, 2, 3], params) == expected


def test_max_model_len_wins_over_min_tokens() -> None:
    engine = make_engine(max_model_len=20)
    assert len(generate(engine, [1] * 15, SamplingParams(temperature=0, max_tokens=50, min_tokens=50))) == 5


def test_non_finite_logits_fail_that_sequence_only() -> None:
    engine = make_engine(FakeDecoder(nan_token_id=50))
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    bad = engine.add([1, 50], params, seed=0)
    good = engine.add([1, 2], params, seed=0)
    outputs = run_to_end(engine)
    [output] = outputs[bad]
    assert (output.token_id, output.finish_reason) == (None, FinishReason.ERROR)
    assert isinstance(output.error, NonFiniteLogits)
    assert "not finite" in str(output.error)
    assert [output.token_id for output in outputs[good]] == expected_output([1, 2], params)
    assert all_is_free(engine)


def test_non_finite_logits_in_a_prompt_fail_who_asked_for_them() -> None:
    engine = make_engine(FakeDecoder(nan_token_id=50), prefix_caching=True)
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    prompt = [50, *range(20)]
    bad = engine.add(prompt, replace(params, prompt_logprobs=0), seed=0)
    nothing_drawn = engine.add(prompt, replace(params, prompt_logprobs=0, max_tokens=0), seed=0)
    good = engine.add(prompt, params, seed=0)
    outputs = run_to_end(engine)
    for seq_id in (bad, nothing_drawn):
        [output] = outputs[seq_id]
        assert (output.token_id, output.prompt_logprobs) == (None, None)
        assert isinstance(output.error, NonFiniteLogits)
    assert [output.token_id for output in outputs[good]] == expected_output(prompt, params)
    assert all_is_free(engine)


def test_a_long_prompt_with_logprobs_never_asks_for_more_rows_than_a_chunk() -> None:
    decoder = FakeDecoder()
    engine = make_engine(decoder, max_batch_tokens=500)
    rng = random.Random(0)
    params = SamplingParams(max_tokens=2, temperature=0, prompt_logprobs=1, ignore_eos=True)
    requests = [Request(rng.choices(range(VOCAB_SIZE), k=k), params, 0) for k in (200, 60, 60, 30)]
    seq_ids = [engine.add(r.prompt, r.params, seed=0) for r in requests]
    outputs = run_to_end(engine)
    for seq_id, request in zip(seq_ids, requests, strict=True):
        assert outputs[seq_id][0].prompt_logprobs == request.expected_prompt_logprobs
    assert max(len(inputs.logit_rows) for inputs in decoder.batches) <= PROMPT_LOGPROBS_CHUNK + len(requests)


# What is refused.


@pytest.mark.parametrize("prompt", [[], [-1], [VOCAB_SIZE], [1, 2.0], [True], ["a"], [None], [1, "x" * 999]])
def test_a_bad_prompt_is_refused_by_check_and_add(prompt: list[Any]) -> None:
    engine = make_engine()
    with pytest.raises(InvalidRequest) as checked:
        engine.check(prompt, SamplingParams())
    with pytest.raises(InvalidRequest) as added:
        engine.add(prompt, SamplingParams(), seed=0)
    assert (checked.value.param, str(checked.value)) == ("prompt", str(added.value))
    assert len(str(checked.value)) < 200
    assert not engine.has_work


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    engine = make_engine(max_model_len=20)
    with pytest.raises(ContextLengthExceeded):
        engine.check([1] * 20, SamplingParams())
    engine.check([1] * 19, SamplingParams())


def test_a_prompt_that_fills_the_context_window_may_be_computed_if_nothing_is_drawn() -> None:
    engine = make_engine(max_model_len=20, num_blocks=2)
    params = SamplingParams(max_tokens=0, prompt_logprobs=1)
    engine.add([1] * 20, params, seed=0)
    [[output]] = run_to_end(engine).values()
    assert (output.token_id, output.finish_reason) == (None, FinishReason.LENGTH)
    assert output.prompt_logprobs == expected_prompt_logprobs([1] * 20, params)
    with pytest.raises(ContextLengthExceeded):
        engine.check([1] * 21, params)
    assert all_is_free(engine)


def test_token_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(InvalidRequest) as error:
        make_engine().check([1], SamplingParams(stop_token_ids=[VOCAB_SIZE]))
    assert error.value.param == "stop_token_ids"


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_a_seed_of_more_than_64_bits_is_refused(seed: int) -> None:
    engine = make_engine()
    with pytest.raises(InvalidRequest) as error:
        engine.add([1], SamplingParams(), seed=seed)
    assert error.value.param == "seed"
    engine.add([1], SamplingParams(), seed=MAX_SEED)
    run_to_end(engine)


def test_a_cache_too_small_for_one_request_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="kv_cache_memory"):
        make_engine(num_blocks=4, max_model_len=65)
    make_engine(num_blocks=4, max_model_len=64)


def test_more_than_the_context_window_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="max_model_len"):
        make_engine(max_model_len=MAX_POSITIONS + 1)


# Abort and failure.


def test_an_aborted_sequence_gives_no_further_output() -> None:
    engine = make_engine()
    seq_id = engine.add([1, 2, 3], SamplingParams(max_tokens=9), seed=0)
    assert len(engine.step()) == 1
    engine.abort(seq_id)
    assert engine.step() == []
    assert all_is_free(engine)


def test_abort_of_an_unknown_sequence_has_no_effect() -> None:
    engine = make_engine()
    engine.abort(123)
    assert not engine.has_work


def test_a_failing_step_fails_its_batch_and_the_engine_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    engine = make_engine(FakeDecoder(errors=[RuntimeError("out of luck")]), max_num_seqs=2)
    params = SamplingParams(temperature=0, max_tokens=3)
    seq_ids = [engine.add([1, 2, i], params, seed=0) for i in range(3)]
    with caplog.at_level(logging.ERROR):
        outputs = engine.step()
    assert "out of luck" in caplog.text
    assert [(output.seq_id, output.token_id, output.finish_reason) for output in outputs] == [
        (seq_ids[0], None, FinishReason.ERROR),
        (seq_ids[1], None, FinishReason.ERROR),
    ]
    assert type(outputs[0].error) is EngineError
    assert outputs[0].error is not outputs[1].error  # each is raised on its own
    assert "RuntimeError" in str(outputs[0].error)
    assert "out of luck" not in str(outputs[0].error)  # the message reaches clients
    assert caplog.records[0].exc_info is not None
    answers = run_to_end(engine)
    assert [output.token_id for output in answers[seq_ids[2]]] == expected_output(
        [1, 2, 2], params, eos_token_ids=(EOS,)
    )
    assert all_is_free(engine)


def test_a_failed_step_leaves_nothing_in_the_prefix_cache() -> None:
    engine = make_engine(FakeDecoder(errors=[RuntimeError("out of luck")]))
    params = SamplingParams(temperature=0, max_tokens=3)
    engine.add([1] * 40, params, seed=0)
    engine.step()
    assert generate(engine, [1] * 40, params) == expected_output([1] * 40, params, eos_token_ids=(EOS,))
    assert engine.stats().prefix_cache_hits == 0


def test_two_failing_steps_with_a_good_one_between_do_not_kill_the_engine() -> None:
    decoder = FakeDecoder()
    engine = make_engine(decoder)
    params = SamplingParams(temperature=0, max_tokens=1)
    for _ in range(3):
        decoder.errors.append(RuntimeError("out of luck"))
        engine.add([1, 2], params, seed=0)
        assert engine.step()[0].finish_reason is FinishReason.ERROR
        engine.add([1, 2], params, seed=0)
        assert engine.step()[0].finish_reason is FinishReason.LENGTH


def test_a_second_failing_step_in_a_row_is_the_end() -> None:
    engine = make_engine(FakeDecoder(errors=[RuntimeError("one"), MemoryError("two")]), max_num_seqs=1)
    params = SamplingParams()
    for _ in range(3):
        engine.add([1, 2, 3], params, seed=0)
    assert len(engine.step()) == 1
    with pytest.raises(EngineDead, match="two") as error:
        engine.step()
    assert isinstance(error.value.__cause__, MemoryError)
    assert all_is_free(engine)
    assert not engine.has_work
    assert engine.step() == []
    with pytest.raises(EngineDead):
        engine.check([1, 2, 3], params)
    with pytest.raises(EngineDead):
        engine.add([1, 2, 3], params, seed=0)


def test_an_interrupted_step_can_be_taken_again() -> None:
    engine = make_engine(FakeDecoder(errors=[KeyboardInterrupt()]))
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    seq_id = engine.add([1, 2, 3], params, seed=0)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert [output.token_id for output in run_to_end(engine)[seq_id]] == expected_output([1, 2, 3], params)


# Figures.


def test_stats_count_what_happened() -> None:
    engine = make_engine(max_num_seqs=1)
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    engine.add(list(range(20)), params, seed=0)
    engine.add(list(range(20)), params, seed=0)
    engine.step()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (1, 1)
    assert (stats.num_blocks, stats.num_free_blocks) == (64, 62)
    assert (stats.num_prompt_tokens, stats.num_output_tokens) == (40, 1)
    run_to_end(engine)
    stats = engine.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (40, 16)
    assert (stats.num_prompt_tokens, stats.num_output_tokens) == (40, 6)
    assert stats.num_preemptions == 0


def test_the_last_batch_says_who_was_computed_and_what_was_found_in_the_cache() -> None:
    engine = make_engine()
    assert engine.last_batch == []
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    first = engine.add([1] * 40, params, seed=0)
    engine.step()
    second = engine.add([1] * 40, params, seed=0)
    third = engine.add([2] * 5, params, seed=0)

    def computed() -> list[tuple[int, int, int]]:
        return [
            (item.seq.seq_id, item.num_scheduled_tokens, item.seq.num_cached_at_admission)
            for item in engine.last_batch
        ]

    assert computed() == [(first, 40, 0)]
    engine.step()
    assert computed() == [(second, 8, 32), (third, 5, 0)]
    engine.step()
    assert engine.last_batch == []


def test_the_last_batch_is_there_after_a_failed_step() -> None:
    engine = make_engine(FakeDecoder(errors=[RuntimeError("out of luck")]))
    seq_id = engine.add([1, 2, 3], SamplingParams(), seed=0)
    engine.step()
    assert [(item.seq.seq_id, item.num_tokens) for item in engine.last_batch] == [(seq_id, 3)]


def test_what_was_cached_at_admission_is_kept_through_preemption() -> None:
    engine = make_engine(num_blocks=7, max_model_len=112, max_num_seqs=2)
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    engine.add([1] * 30, params, seed=0)
    preempted = engine.add([2] * 30, params, seed=0)
    cached = set()
    while engine.has_work:
        engine.step()
        sequences = [item.seq for item in engine.last_batch]
        cached |= {seq.num_cached_at_admission for seq in sequences if seq.seq_id == preempted}
    assert engine.stats().num_preemptions > 0
    assert engine.stats().prefix_cache_hits > 0  # when it came back
    assert cached == {0}


def test_processor_time_is_that_of_the_decoder() -> None:
    assert make_engine().worker_cpu_s() == 0.0


def test_sequence_ids_increase() -> None:
    engine = make_engine()
    seq_ids = [engine.add([1], SamplingParams(), seed=0) for _ in range(5)]
    assert seq_ids == sorted(set(seq_ids))
