"""The promise: the tokens of a request depend on the request alone.

The same requests, each alone and then in ever other company, on a small random model: in each number
format, on every instruction set this machine has. Tokens and log-probabilities must be identical, not close.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import pytest
from random_model import random_spec, random_weights

from pocketlm import kernels
from pocketlm.engine import prompt_lookup
from pocketlm.engine.engine import Engine
from pocketlm.outputs import FinishReason, StepOutput
from pocketlm.sampling import SamplingParams

EOS = 0
MULTI_HEAD = random_spec()
# As Llama: grouped queries, rotary positions, RMS norm, a gated MLP.
GROUPED_QUERY = random_spec(
    num_kv_heads=2, norm="rms", activation="silu", gated_mlp=True, rotary_frequencies=(1.0, 0.3, 0.1, 0.03)
)
MODELS = {
    "float32": ("float32", MULTI_HEAD),
    "bfloat16": ("bfloat16", MULTI_HEAD),
    "int8": ("int8", MULTI_HEAD),
    "int8, grouped-query": ("int8", GROUPED_QUERY),
    "int4": ("int4", MULTI_HEAD),
}


@dataclass(frozen=True)
class Request:
    prompt: list[int]
    params: SamplingParams
    seed: int


@dataclass(frozen=True)
class Conditions:
    """What must make no difference."""

    num_threads: int = 1
    max_num_seqs: int = 16
    max_batch_tokens: int = 64
    num_blocks: int = 1000
    prefix_caching: bool = False
    speculative_tokens: int = 0


def random_requests(num_requests: int) -> list[Request]:
    rng = random.Random(1)
    vocabulary = range(MULTI_HEAD.vocab_size)
    prefixes = [rng.choices(vocabulary, k=length) for length in (16, 33, 48)]

    def random_request() -> Request:
        prompt = rng.choices(vocabulary, k=rng.randint(1, rng.choice((8, 8, 60))))
        if rng.random() < 0.3:  # repeats itself
            prompt = (prompt[:5] * 12)[: rng.randint(1, 60)]
        if rng.random() < 0.3:  # begins like others
            prefix = rng.choice(prefixes)
            prompt = prefix + prompt[: 60 - len(prefix)]
        optional: list[Callable[[SamplingParams], SamplingParams]] = [
            lambda p: replace(p, temperature=0.0),
            lambda p: replace(p, top_k=rng.randint(1, 20)),
            lambda p: replace(p, top_p=rng.uniform(0.3, 1)),
            lambda p: replace(p, min_p=rng.uniform(0, 0.3)),
            lambda p: replace(p, repetition_penalty=rng.uniform(1, 1.5)),
            lambda p: replace(p, presence_penalty=rng.uniform(-1, 1), frequency_penalty=rng.uniform(-1, 1)),
            lambda p: replace(p, logit_bias={rng.choice(vocabulary): rng.uniform(-5, 5)}),
            lambda p: replace(p, min_tokens=rng.randint(1, p.max_tokens or 1)),
            lambda p: replace(p, stop_token_ids=rng.sample(vocabulary, k=10)),
            lambda p: replace(p, logprobs=rng.randint(0, 5)),
            lambda p: replace(p, prompt_logprobs=rng.randint(0, 5)),
        ]
        params = SamplingParams(max_tokens=rng.randint(1, 14), temperature=rng.uniform(0.3, 1.5))
        for change in optional:
            if rng.random() < 0.3:
                params = change(params)
        if params.min_tokens == 0 and rng.random() < 0.1:
            params = replace(params, max_tokens=0)
        return Request(prompt, params, seed=rng.randrange(2**64))

    return [random_request() for _ in range(num_requests)]


class Bench:
    """One packed model and the requests it is asked."""

    def __init__(self, isa: str, model: str) -> None:
        self.isa = isa
        self.dtype, self.spec = MODELS[model]
        self.requests = random_requests(40 if isa == "reference" else 200)  # NumPy takes its time
        self.decoder = cache(self._decoder)
        engine = self.engine(Conditions())
        self.alone = [self.run(engine, [number])[number] for number in range(len(self.requests))]

    def _decoder(self, num_threads: int) -> kernels.Decoder:
        weights = random_weights(self.spec, learned_positions=not self.spec.rotary_frequencies)
        return kernels.create_decoder(
            self.spec, weights, dtype=self.dtype, num_threads=num_threads, isa_name=self.isa
        )

    def engine(self, conditions: Conditions) -> Engine:
        return Engine(
            self.decoder(conditions.num_threads),
            eos_token_ids=(EOS,),
            num_blocks=conditions.num_blocks,
            max_model_len=self.spec.max_positions,
            max_num_seqs=conditions.max_num_seqs,
            max_batch_tokens=conditions.max_batch_tokens,
            prefix_caching=conditions.prefix_caching,
            speculative_tokens=conditions.speculative_tokens,
        )

    def run(self, engine: Engine, numbers: list[int]) -> dict[int, list[StepOutput]]:
        """The answers to some requests that arrive at once, in this order; seq_id is made the number."""
        number_of = {}
        for number in numbers:
            request = self.requests[number]
            number_of[engine.add(request.prompt, request.params, seed=request.seed)] = number
        answers: dict[int, list[StepOutput]] = {number: [] for number in numbers}
        while engine.has_work:
            for output in engine.step():
                number = number_of[output.seq_id]
                answers[number].append(replace(output, seq_id=number))
        return answers

    def shuffled(self, seed: int) -> list[int]:
        numbers = list(range(len(self.requests)))
        random.Random(seed).shuffle(numbers)
        return numbers


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=kernels.available_isas())
def bench(request: pytest.FixtureRequest, model: str) -> Bench:
    return Bench(request.param, model)


def run_to_end(engine: Engine) -> list[StepOutput]:
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return outputs


def check(bench: Bench, engine: Engine, *, order: int) -> None:
    """Ask everything at once, shuffled; the answers must be what they were alone."""
    answers = bench.run(engine, bench.shuffled(order))
    assert len(answers) == len(bench.alone)
    for number, outputs in answers.items():
        assert outputs == bench.alone[number], bench.requests[number]


def test_the_requests_are_worth_asking(bench: Bench) -> None:
    """If all answers were alike, the rest would prove little."""
    answers = [tuple(output.token_id for output in outputs) for outputs in bench.alone]
    drawn = [answer for answer in answers if answer != (None,)]
    assert len(set(drawn)) > 0.8 * len(drawn) > 0.7 * len(bench.requests)
    assert {outputs[-1].finish_reason for outputs in bench.alone} == {FinishReason.STOP, FinishReason.LENGTH}
    assert any(output.logprobs is not None for outputs in bench.alone for output in outputs)
    assert any(outputs[0].prompt_logprobs for outputs in bench.alone)
    assert any(outputs[0].token_id is None for outputs in bench.alone)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_together(bench: Bench, num_threads: int) -> None:
    engine = bench.engine(Conditions(num_threads=num_threads, max_num_seqs=64, max_batch_tokens=512))
    check(bench, engine, order=num_threads)


def test_in_small_chunks_on_few_blocks(bench: Bench) -> None:
    num_preemptions = num_cached_tokens = 0
    for order, conditions in enumerate(
        [
            # 6 blocks hold one sequence of the greatest length.
            Conditions(max_batch_tokens=1, num_blocks=6, prefix_caching=True),
            Conditions(max_batch_tokens=3, num_blocks=6),
            Conditions(max_batch_tokens=7, num_blocks=6, prefix_caching=True),
            Conditions(max_batch_tokens=64, num_blocks=6, num_threads=2, prefix_caching=True),
        ]
    ):
        engine = bench.engine(conditions)
        check(bench, engine, order=order)
        num_preemptions += engine.stats().num_preemptions
        num_cached_tokens += engine.stats().prefix_cache_hits
    assert num_preemptions > 0
    assert num_cached_tokens > 0


def test_with_a_cold_and_a_warm_prefix_cache(bench: Bench) -> None:
    engine = bench.engine(Conditions(prefix_caching=True))
    check(bench, engine, order=1)
    cold_hits = engine.stats().prefix_cache_hits
    check(bench, engine, order=2)
    warm_hits = engine.stats().prefix_cache_hits - cold_hits
    assert 0 < cold_hits < warm_hits


def test_with_drafts_by_prompt_lookup(bench: Bench) -> None:
    """Sequences alone, one after the other and beside others that come and go."""
    num_draft_tokens = num_accepted_tokens = 0
    for order, conditions in enumerate(
        [
            Conditions(max_num_seqs=1, speculative_tokens=4, num_threads=2),
            Conditions(max_num_seqs=1, speculative_tokens=9, num_blocks=6, prefix_caching=True),
            Conditions(max_num_seqs=2, speculative_tokens=2, num_blocks=6, max_batch_tokens=7),
        ]
    ):
        engine = bench.engine(conditions)
        check(bench, engine, order=order)
        num_draft_tokens += engine.stats().num_draft_tokens
        num_accepted_tokens += engine.stats().num_accepted_tokens
    assert 0 < num_accepted_tokens < num_draft_tokens


def test_with_drafts_that_are_nearly_right(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt look-up seldom guesses what is drawn at random. Here most guesses are right, whoever asks."""
    answers = [
        request.prompt + [output.token_id for output in outputs if output.token_id is not None]
        for request, outputs in zip(bench.requests, bench.alone, strict=True)
    ]
    rng = random.Random(3)

    def nearly_right(token_ids: list[int], num_tokens: int) -> list[int]:
        [following, *_] = [text[len(token_ids) :] for text in answers if text[: len(token_ids)] == token_ids]
        guess = (following + [1] * num_tokens)[: max(0, num_tokens)]
        return [rng.choice(range(8)) if rng.random() < 0.2 else token_id for token_id in guess]

    monkeypatch.setattr(prompt_lookup, "draft", nearly_right)
    engine = bench.engine(Conditions(max_num_seqs=1, speculative_tokens=5, prefix_caching=True))
    check(bench, engine, order=4)
    stats = engine.stats()
    assert stats.num_output_tokens / 3 < stats.num_accepted_tokens < stats.num_draft_tokens


def test_a_token_has_the_same_log_probability_when_drawn_and_when_read(bench: Bench) -> None:
    """An answer given back as part of the prompt reports the very numbers it was drawn with."""
    engine = bench.engine(Conditions(max_batch_tokens=17))
    for request in bench.requests[:10]:
        prompt = request.prompt[:40]
        params = SamplingParams(max_tokens=20, temperature=1.0, logprobs=3, ignore_eos=True)
        engine.add(prompt, params, seed=request.seed)
        drawn = run_to_end(engine)
        answer = [output.token_id for output in drawn if output.token_id is not None]
        engine.add(prompt + answer, SamplingParams(max_tokens=0, prompt_logprobs=3), seed=0)
        [read] = run_to_end(engine)
        assert read.prompt_logprobs is not None
        assert read.prompt_logprobs[len(prompt) - 1 :] == [output.logprobs for output in drawn]
