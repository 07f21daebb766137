"""The comparison of two decoders, against the definitions of its figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from driver import SequenceDriver
from random_model import random_spec, random_weights
from served import bundled_model

from pocketlm.accuracy import CHUNK, Accuracy, compare, logits_of, windows_of
from pocketlm.kernels import Decoder, create_decoder
from pocketlm.kernels.inputs import Float32Array

SPEC = random_spec(max_positions=2 * CHUNK)


def decoder(seed: int = 0, dtype: str = "float32") -> Decoder:
    return create_decoder(SPEC, random_weights(SPEC, seed=seed), dtype=dtype, num_threads=1)


def random_window(length: int) -> list[int]:
    ids: list[int] = np.random.default_rng(length).integers(SPEC.vocab_size, size=length).tolist()
    return ids


def probabilities(logits: Float32Array) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    exp = np.exp(logits.astype(np.float64))
    return np.asarray(exp / exp.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
def test_chunks_join_to_the_logits_of_the_whole_window(length: int) -> None:
    window = random_window(length)
    found = np.concatenate(list(logits_of(decoder(), window)))
    np.testing.assert_array_equal(found, SequenceDriver(decoder(), length).forward(window))


def test_the_figures_are_what_they_are_called() -> None:
    windows = [random_window(n) for n in (CHUNK + 7, CHUNK, 3, 1)]
    one, two = decoder(seed=0), decoder(seed=1)
    losses, kls, equal = [], [], []
    for window in windows:
        p, q = (probabilities(SequenceDriver(d, len(window)).forward(window)) for d in (one, two))
        kls += (p * np.log(p / q)).sum(axis=1).tolist()
        equal += (p.argmax(axis=1) == q.argmax(axis=1)).tolist()
        losses += [(-math.log(p[i, token]), -math.log(q[i, token])) for i, token in enumerate(window[1:])]
    accuracy = compare(one, two, windows)
    assert accuracy.num_positions == len(kls) and accuracy.num_predicted == len(losses)
    assert accuracy.mean_kl == pytest.approx(np.mean(kls), rel=1e-4)
    assert accuracy.greedy_agreement == np.mean(equal)
    expected = [math.exp(loss) for loss in np.mean(losses, axis=0)]
    assert [accuracy.reference_perplexity, accuracy.perplexity] == pytest.approx(expected, rel=1e-4)


def test_a_decoder_equals_itself() -> None:
    accuracy = compare(decoder(), decoder(), [random_window(50)])
    assert (accuracy.mean_kl, accuracy.greedy_agreement) == (0, 1)
    assert accuracy.perplexity == accuracy.reference_perplexity


def test_int8_is_near_float32() -> None:
    accuracy = compare(decoder(), decoder(dtype="int8"), [random_window(100)])
    assert 0 < accuracy.mean_kl < 0.05
    assert accuracy.greedy_agreement > 0.8


def test_nothing_measured_is_no_number() -> None:
    assert math.isnan(Accuracy().mean_kl)


def test_windows_cover_each_document_without_overlap() -> None:
    tokenizer = bundled_model().tokenizer
    documents = ["The first document. " * 10, "A second one.\n", "The third"]
    windows = list(windows_of(tokenizer, "<|endoftext|>\n".join([documents[0] + "\n", *documents[1:]]), 16))
    assert all(1 <= len(window) <= 16 for window in windows)
    joined = [token_id for window in windows for token_id in window]
    expected = [tokenizer.encode(text) for text in (documents[0] + "\n", *documents[1:])]
    assert joined == [token_id for ids in expected for token_id in ids]
    assert sum(len(window) < 16 for window in windows) >= 2  # a window never spans two documents
