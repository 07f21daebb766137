"""Runner: a Batch of sequences into arrays, through the decoder, and out again as Python values."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate, islice, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm.engine.batch import Batch, ComputedSequence
from pocketlm.engine.sequence import Sequence
from pocketlm.kernels import Decoder, KVCache
from pocketlm.kernels.inputs import (
    BLOCK_SIZE,
    Float32Array,
    ForwardInputs,
    Int32Array,
    LogprobOutputs,
    SamplingInputs,
    SamplingOutputs,
)
from pocketlm.outputs import TokenLogprobs
from pocketlm.sampling import SamplingParams


class Runner:
    def __init__(self, decoder: Decoder, kv_cache: KVCache) -> None:
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._draws = Draws([])  # mostly the same sequences draw in step after step

    def run(self, batch: Batch) -> list[ComputedSequence]:
        """Compute the scheduled tokens, and draw the next one of each sequence that reached its end."""
        num_draws = [item.num_draws for item in batch]
        logits = self._decoder.forward(forward_inputs(batch, num_draws), self._kv_cache)  # [R, V]
        num_drawn = sum(num_draws)
        drawn = iter(self._draw(batch, num_draws, logits[:num_drawn]))
        computed = []
        for num in num_draws:
            first = next(drawn) if num else ComputedSequence()
            if num > 1:
                first = first._replace(after_draft=tuple(islice(drawn, num - 1)))
            computed.append(first)
        if len(logits) == num_drawn:
            return computed
        reported = self._report(batch, logits[num_drawn:])
        return [
            ComputedSequence(is_finite=False)
            if prompt_logprobs is None or not one.is_finite
            else one._replace(prompt_logprobs=prompt_logprobs)
            for one, prompt_logprobs in zip(computed, reported, strict=True)
        ]

    def _draw(self, batch: Batch, num_draws: list[int], logits: Float32Array) -> list[ComputedSequence]:
        """The next token of each sequence that draws, and that after each token of its draft."""
        sequences = [
            item.seq.supposing(item.draft_token_ids[:length]) if length else item.seq
            for item, num in zip(batch, num_draws, strict=True)
            for length in range(num)
        ]
        if not sequences:
            return []
        if sequences != self._draws.sequences:
            self._draws = Draws(sequences)
        outputs = self._decoder.sample(logits, self._draws.inputs())
        drawn = []
        for row, (seq, token_id) in enumerate(zip(sequences, outputs.token_ids.tolist(), strict=True)):
            if token_id < 0:
                drawn.append(ComputedSequence(is_finite=False))
            elif seq.params.logprobs is None:
                drawn.append(ComputedSequence(token_id))
            else:
                drawn.append(ComputedSequence(token_id, _token_logprobs(outputs, row)))
        return drawn

    def _report(self, batch: Batch, logits: Float32Array) -> list[list[TokenLogprobs] | None]:
        """Log-probabilities of prompt tokens, for each sequence; None where logits were not finite."""
        rows = [(item.seq, position) for item in batch for position in item.prompt_logits]
        outputs = self._decoder.log_probabilities(
            logits,
            _int32(seq.token_ids[position + 1] for seq, position in rows),
            _int32(seq.params.prompt_logprobs for seq, _ in rows),
        )
        is_finite = outputs.logprob_ids[:, 0] >= 0
        ranges = pairwise(accumulate((len(item.prompt_logits) for item in batch), initial=0))
        return [
            [_token_logprobs(outputs, row) for row in range(start, end)]
            if is_finite[start:end].all()
            else None
            for start, end in ranges
        ]


def forward_inputs(batch: Batch, num_draws: list[int]) -> ForwardInputs:
    """The next tokens of each of S sequences, T in all; `num_draws` is that of each item."""
    sequences = [item.seq for item in batch]
    counts = [item.num_tokens for item in batch]
    ends = [seq.num_computed_tokens + count for seq, count in zip(sequences, counts, strict=True)]
    token_ids: list[int] = []
    for (seq, _, draft_token_ids), end in zip(batch, ends, strict=True):
        token_ids += seq.token_ids[seq.num_computed_tokens : end]  # the draft lies beyond their end
        token_ids += draft_token_ids
    width = max([len(seq.block_table) for seq in sequences])
    blocks: list[int] = []
    for seq in sequences:
        blocks += seq.block_table
        blocks += [0] * (width - len(seq.block_table))

    block_tables = _int32(blocks).reshape(-1, width)  # [S, B]
    context_lens = _int32(ends)  # [S]
    query_starts = _starts(counts)  # [S + 1]
    rows = np.repeat(np.arange(len(batch)), counts)  # [T] which sequence
    positions = np.arange(len(token_ids), dtype=np.int32) + (context_lens - query_starts[1:])[rows]
    return ForwardInputs(
        token_ids=_int32(token_ids),
        positions=positions,
        slot_mapping=block_tables[rows, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE,
        block_tables=block_tables,
        context_lens=context_lens,
        query_starts=query_starts,
        logit_rows=logit_rows(batch, num_draws, query_starts),
    )


def logit_rows(batch: Batch, num_draws: list[int], query_starts: Int32Array) -> Int32Array:
    """The tokens whose logits are wanted: first the last ones of those who draw, then those of prompts."""
    starts = query_starts.tolist()
    rows = [row for end, num in zip(starts[1:], num_draws, strict=True) for row in range(end - num, end)]
    for item, start in zip(batch, starts[:-1], strict=True):
        if item.seq.wants_prompt_logits:
            rows += [start + position - item.seq.num_computed_tokens for position in item.prompt_logits]
    return _int32(rows)


class Draws:
    """How to draw the next token of each of R sequences, while it is the same sequences."""

    def __init__(self, sequences: list[Sequence]) -> None:
        self.sequences = sequences
        self._columns = parameter_columns(sequences)
        # What grows with a sequence costs its length at every step, so only those who need it pay.
        self._has_history = any(_uses_history(seq.params) for seq in sequences)
        self._has_bans = any(seq.params.min_tokens for seq in sequences)

    def inputs(self) -> SamplingInputs:
        """As the sequences are now."""
        columns = self._columns | {"position": _int32([seq.num_tokens for seq in self.sequences])}
        if self._has_history:
            histories = [seq.token_ids if _uses_history(seq.params) else [] for seq in self.sequences]
            columns |= history_columns(self.sequences, histories)
        if self._has_bans:
            columns |= banned_columns([seq.banned_ids for seq in self.sequences])
        return SamplingInputs(**columns)


def parameter_columns(sequences: list[Sequence]) -> dict[str, NDArray[Any]]:
    """What SamplingInputs has of R sequences for good, if none of them uses its history or bans a token."""
    params = [seq.params for seq in sequences]
    nothing: list[list[int]] = [[] for _ in sequences]
    return {
        **history_columns(sequences, nothing),
        **banned_columns(nothing),
        "seed": np.array([seq.seed for seq in sequences], np.uint64),
        "temperature": _float32(p.temperature for p in params),
        "top_k": _int32(p.top_k for p in params),
        "top_p": _float32(p.top_p for p in params),
        "min_p": _float32(p.min_p for p in params),
        "repetition_penalty": _float32(p.repetition_penalty for p in params),
        "presence_penalty": _float32(p.presence_penalty for p in params),
        "frequency_penalty": _float32(p.frequency_penalty for p in params),
        "bias_ids": _int32(token_id for p in params for token_id in p.logit_bias),
        "bias_values": _float32(bias for p in params for bias in p.logit_bias.values()),
        "bias_starts": _starts(len(p.logit_bias) for p in params),
        "num_logprobs": _int32(-1 if p.logprobs is None else p.logprobs for p in params),
    }


def history_columns(sequences: list[Sequence], histories: list[list[int]]) -> dict[str, NDArray[Any]]:
    return {
        "history": _int32(token_id for history in histories for token_id in history),
        "history_starts": _starts(map(len, histories)),
        "num_prompt_tokens": _int32(
            seq.num_prompt_tokens if history else 0 for seq, history in zip(sequences, histories, strict=True)
        ),
    }


def banned_columns(banned_ids: list[list[int]]) -> dict[str, NDArray[Any]]:
    return {
        "banned_ids": _int32(token_id for ids in banned_ids for token_id in ids),
        "banned_starts": _starts(map(len, banned_ids)),
    }


def _token_logprobs(outputs: SamplingOutputs | LogprobOutputs, row: int) -> TokenLogprobs:
    used = outputs.logprob_ids[row] >= 0
    return TokenLogprobs(
        token_ids=tuple(outputs.logprob_ids[row, used].tolist()),
        logprobs=tuple(outputs.logprobs[row, used].tolist()),
        ranks=tuple(outputs.ranks[row, used].tolist()),
    )


def _uses_history(params: SamplingParams) -> bool:
    penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
    return penalties != (1.0, 0.0, 0.0)


def _int32(values: Iterable[object]) -> Int32Array:
    return np.array(list(values), np.int32)


def _float32(values: Iterable[float]) -> Float32Array:
    return np.array(list(values), np.float32)


def _starts(lengths: Iterable[int]) -> Int32Array:
    """Where each of some ranges laid end to end begins, and where the last one ends."""
    return _int32(accumulate(lengths, initial=0))
