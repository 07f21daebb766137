"""The thread pool: many short runs on more threads than processors, and callers that come at once."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from random_model import random_spec, random_weights

from pocketlm import kernels
from pocketlm.accuracy import logits_of
from pocketlm.kernels.inputs import Float32Array

pytestmark = pytest.mark.skipif(not kernels.COMPILED_ISAS, reason="the compiled core was not built")

SPEC = random_spec(vocab_size=400, intermediate_size=300)


def all_logits(decoder: kernels.Decoder, token_ids: list[int]) -> Float32Array:
    return np.concatenate(list(logits_of(decoder, token_ids)))


def test_many_short_runs_on_more_threads_than_processors() -> None:
    weights = random_weights(SPEC)
    alone = kernels.create_decoder(SPEC, weights, dtype="int8", num_threads=1)
    many = kernels.create_decoder(SPEC, weights, dtype="int8", num_threads=7)
    for length in range(1, 60):
        token_ids = list(range(length))
        np.testing.assert_array_equal(all_logits(many, token_ids), all_logits(alone, token_ids))


def test_callers_that_come_at_once_take_turns() -> None:
    decoder = kernels.create_decoder(SPEC, random_weights(SPEC), dtype="float32", num_threads=2)
    prompts = [[seed * 7 + i for i in range(40)] for seed in range(8)]
    expected = [all_logits(decoder, prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as callers:
        found = callers.map(lambda prompt: all_logits(decoder, prompt), prompts * 10)
    for logits, prompt_expected in zip(found, expected * 10, strict=True):
        np.testing.assert_array_equal(logits, prompt_expected)


def test_decoders_come_and_go() -> None:
    """Threads that sleep are woken to end."""
    for num_threads in (1, 2, 5) * 10:
        decoder = kernels.create_decoder(SPEC, random_weights(SPEC), dtype="int8", num_threads=num_threads)
        all_logits(decoder, [1, 2, 3])
        del decoder


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the threads' clocks are read on Linux only")


@on_linux
def test_processor_time_of_the_workers_is_counted() -> None:
    decoder = kernels.create_decoder(SPEC, random_weights(SPEC), dtype="float32", num_threads=3)
    process_before_s = time.process_time()
    before_s = decoder.worker_cpu_s()
    assert before_s is not None
    after_s: float | None = before_s
    for _ in range(1000):  # until a worker came to take a piece
        all_logits(decoder, list(range(30)))
        after_s = decoder.worker_cpu_s()
        assert after_s is not None and after_s >= before_s
        if after_s > before_s:
            break
    used_by_all_s = time.process_time() - process_before_s
    assert 0 < after_s - before_s <= used_by_all_s + 0.001


@on_linux
def test_a_decoder_without_workers_has_used_none_of_their_time() -> None:
    decoder = kernels.create_decoder(SPEC, random_weights(SPEC), dtype="float32", num_threads=1)
    all_logits(decoder, list(range(30)))
    assert decoder.worker_cpu_s() == 0.0
    reference = kernels.create_decoder(
        SPEC, random_weights(SPEC), dtype="float32", num_threads=2, isa_name="reference"
    )
    assert reference.worker_cpu_s() == 0.0
