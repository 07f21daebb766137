"""Runs a decoder without the engine: one sequence, its blocks in order, prefill and then token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pocketlm.kernels import Decoder
from pocketlm.kernels.inputs import BLOCK_SIZE, Float32Array, ForwardInputs


class SequenceDriver:
    def __init__(self, decoder: Decoder, max_length: int) -> None:
        self._decoder = decoder
        self._num_blocks = -(-max_length // BLOCK_SIZE)
        self._kv_cache = decoder.new_kv_cache(self._num_blocks)
        self._length = 0

    def forward(self, token_ids: Sequence[int]) -> Float32Array:
        """The logits after each of the next tokens of the sequence [T, V]."""
        start, self._length = self._length, self._length + len(token_ids)
        positions = np.arange(start, self._length, dtype=np.int32)
        inputs = ForwardInputs(
            token_ids=np.array(token_ids, np.int32),
            positions=positions,
            slot_mapping=positions,
            block_tables=np.arange(self._num_blocks, dtype=np.int32)[None],
            context_lens=np.array([self._length], np.int32),
            query_starts=np.array([0, len(token_ids)], np.int32),
            logit_rows=np.arange(len(token_ids), dtype=np.int32),
        )
        return self._decoder.forward(inputs, self._kv_cache)


def greedy(decoder: Decoder, prompt: Sequence[int], num_tokens: int) -> tuple[list[int], Float32Array]:
    """The most likely continuation, and the logits each of its tokens was chosen from [num_tokens, V]."""
    sequence = SequenceDriver(decoder, len(prompt) + num_tokens)
    logits = [sequence.forward(prompt)[-1]]
    tokens = [int(logits[0].argmax())]
    while len(tokens) < num_tokens:
        logits.append(sequence.forward(tokens[-1:])[0])
        tokens.append(int(logits[-1].argmax()))
    return tokens, np.stack(logits)
