"""The arrays one step hands to the kernels; both implementations take exactly these."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK_SIZE = 16  # positions in one KV block, the same in csrc/kernels.h

Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]


class ForwardInputs(NamedTuple):
    """A ragged batch: S sequences with T tokens to compute between them.

    Sequence s owns tokens query_starts[s] to query_starts[s + 1]. They are the last tokens of its
    context, so token t of it attends to positions 0 to positions[t]. Position p of sequence s lives in
    block block_tables[s, p // BLOCK_SIZE], row p % BLOCK_SIZE; slot = block * BLOCK_SIZE + row. Sequences
    may share blocks, but none that are written in this step.
    """

    token_ids: Int32Array  # [T]
    positions: Int32Array  # [T]
    slot_mapping: Int32Array  # [T]    where the key and value of each token are written
    block_tables: Int32Array  # [S, B] unused entries are 0
    context_lens: Int32Array  # [S]    positions known after this step
    query_starts: Int32Array  # [S + 1]
    logit_rows: Int32Array  # [R]      the tokens whose logits are wanted


class SamplingInputs(NamedTuple):
    """How to choose a token from each of R rows of logits. Ragged lists come with R + 1 starts."""

    temperature: Float32Array  # [R]  0 = greedy
    top_k: Int32Array  # [R]          0 = all
    top_p: Float32Array  # [R]
    min_p: Float32Array  # [R]
    repetition_penalty: Float32Array  # [R]
    presence_penalty: Float32Array  # [R]
    frequency_penalty: Float32Array  # [R]
    seed: NDArray[np.uint64]  # [R]
    position: Int32Array  # [R]       of the token to be drawn; with the seed it is the random number
    history: Int32Array  # prompt then output ids of each row, for the penalties; may be empty if they are off
    history_starts: Int32Array  # [R + 1]
    num_prompt_tokens: Int32Array  # [R]  how much of the row's history is prompt
    bias_ids: Int32Array  # logit_bias
    bias_values: Float32Array
    bias_starts: Int32Array  # [R + 1]
    banned_ids: Int32Array  # tokens that must not be drawn now (min_tokens)
    banned_starts: Int32Array  # [R + 1]
    num_logprobs: Int32Array  # [R]   -1 = none; k = the drawn token and the k most likely


class SamplingOutputs(NamedTuple):
    token_ids: Int32Array  # [R]  -1 where the logits were not finite
    # Column 0 is the drawn token, then the most likely ones; -1 pads. M is the largest num_logprobs + 1.
    logprob_ids: Int32Array  # [R, M]
    logprobs: Float32Array  # [R, M]  of the raw logits, before any processing
    ranks: Int32Array  # [R, M]       1 = most likely


class LogprobOutputs(NamedTuple):
    """Log-probabilities of one given token a row, as SamplingOutputs has them of the drawn one."""

    logprob_ids: Int32Array  # [R, M]  all -1 where the logits were not finite
    logprobs: Float32Array  # [R, M]
    ranks: Int32Array  # [R, M]
