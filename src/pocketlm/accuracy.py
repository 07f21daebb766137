"""How close the logits of one decoder are to those of another, e.g. int8 to float32."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pocketlm.kernels import Decoder
from pocketlm.kernels.inputs import BLOCK_SIZE, Float32Array, ForwardInputs
from pocketlm.text.tokenizer import Tokenizer

CHUNK = 64  # positions computed at a time, so that long windows of a large vocabulary fit in memory
LogitsOf = Callable[[list[int]], Iterator[Float32Array]]

DOCUMENT_SEPARATOR = re.compile(r"^<\|endoftext\|>\n?", re.MULTILINE)

PASSAGE = """\
A small service runs in a container on one machine. At first that is enough, and nobody thinks about it.
Then more people use it, the machine is busy in the afternoon, and one day it stops answering while a disk
is replaced. So the team starts a second copy and puts a load balancer in front of both. Now a request may
reach either of them, and what one copy remembers the other does not know. The answer is an old one: keep
the state in a database, keep the service simple, and let the scheduler decide where each copy should run.
"""


@dataclass
class Accuracy:
    """Sums over positions; the averages are the properties."""

    num_positions: int = 0
    num_predicted: int = 0  # positions whose next token is in the same window
    kl_sum: float = 0.0
    num_equal: int = 0
    reference_loss_sum: float = 0.0
    loss_sum: float = 0.0

    @property
    def mean_kl(self) -> float:
        """KL divergence of the decoder from the reference, in nats per position."""
        return _ratio(self.kl_sum, self.num_positions)

    @property
    def greedy_agreement(self) -> float:
        """The share of positions where both find the same token most likely."""
        return _ratio(self.num_equal, self.num_positions)

    @property
    def reference_perplexity(self) -> float:
        return math.exp(_ratio(self.reference_loss_sum, self.num_predicted))

    @property
    def perplexity(self) -> float:
        return math.exp(_ratio(self.loss_sum, self.num_predicted))


def compare(reference: Decoder, decoder: Decoder, windows: Iterable[list[int]]) -> Accuracy:
    """Run both decoders over windows of token ids, each no longer than the context."""
    return compare_logits(partial(logits_of, reference), partial(logits_of, decoder), windows)


def compare_logits(reference: LogitsOf, decoder: LogitsOf, windows: Iterable[list[int]]) -> Accuracy:
    """The same of whatever has logits, as chunks of equal length."""
    accuracy = Accuracy()
    for token_ids in windows:
        start = 0
        for expected, found in zip(reference(token_ids), decoder(token_ids), strict=True):
            next_ids = np.array(token_ids[start + 1 : start + 1 + len(expected)], np.int64)
            _add(accuracy, log_softmax(expected), log_softmax(found), next_ids)
            start += len(expected)
    return accuracy


def windows_of(tokenizer: Tokenizer, text: str, length: int) -> Iterator[list[int]]:
    """The documents of a text, each cut into windows of `length` tokens that do not overlap."""
    for document in DOCUMENT_SEPARATOR.split(text):
        token_ids = tokenizer.encode(document)
        for start in range(0, len(token_ids), length):
            yield token_ids[start : start + length]


def logits_of(decoder: Decoder, token_ids: list[int], chunk_size: int = CHUNK) -> Iterator[Float32Array]:
    """The logits of every position in turn, as chunks [chunk_size or fewer, V]."""
    kv_cache = decoder.new_kv_cache(-(-len(token_ids) // BLOCK_SIZE))
    block_tables = np.arange(kv_cache.num_blocks, dtype=np.int32)[None]  # [1, B] in order: slot = position
    for start in range(0, len(token_ids), chunk_size):
        chunk = np.array(token_ids[start : start + chunk_size], np.int32)
        end = start + len(chunk)
        positions = np.arange(start, end, dtype=np.int32)
        inputs = ForwardInputs(
            token_ids=chunk,
            positions=positions,
            slot_mapping=positions,
            block_tables=block_tables,
            context_lens=np.array([end], np.int32),
            query_starts=np.array([0, len(chunk)], np.int32),
            logit_rows=np.arange(len(chunk), dtype=np.int32),
        )
        yield decoder.forward(inputs, kv_cache)


def log_softmax(logits: Float32Array) -> Float32Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _add(
    accuracy: Accuracy,
    expected: Float32Array,  # [T, V] log-probabilities
    found: Float32Array,  # [T, V]
    next_ids: NDArray[np.int64],  # [T], or one less at the end of a window
) -> None:
    predicted = np.arange(len(next_ids)), next_ids
    accuracy.num_positions += len(expected)
    accuracy.num_predicted += len(next_ids)
    accuracy.kl_sum += float((np.exp(expected) * (expected - found)).sum())
    accuracy.num_equal += int((expected.argmax(axis=1) == found.argmax(axis=1)).sum())
    accuracy.reference_loss_sum -= float(expected[predicted].sum())
    accuracy.loss_sum -= float(found[predicted].sum())


def _ratio(total: float, count: int) -> float:
    return total / count if count else math.nan
