"""The sampler in NumPy: the definition of how a token is chosen from a row of logits.

Every filter is a cutoff: a token is kept if its logit reaches it. So ties are kept together, nothing
depends on the order of a sort, and the draw walks the kept tokens in the order of their ids.
"""

from __future__ import annotations

import numpy as np

from pocketlm.kernels.inputs import (
    Float32Array,
    Int32Array,
    LogprobOutputs,
    SamplingInputs,
    SamplingOutputs,
)


def sample(logits: Float32Array, inputs: SamplingInputs) -> SamplingOutputs:
    """One token for each of the R rows of logits [R, V], as SamplingInputs asks."""
    num_rows = len(logits)
    width = int(inputs.num_logprobs.max(initial=-1)) + 1
    outputs = SamplingOutputs(
        token_ids=np.full(num_rows, -1, np.int32),
        logprob_ids=np.full((num_rows, width), -1, np.int32),
        logprobs=np.zeros((num_rows, width), np.float32),
        ranks=np.full((num_rows, width), -1, np.int32),
    )
    for r in range(num_rows):
        if not np.isfinite(logits[r]).all():
            continue
        token_id = draw(processed_logits(logits[r], inputs, r), inputs, r)
        outputs.token_ids[r] = token_id
        num_logprobs = inputs.num_logprobs[r]
        if num_logprobs >= 0:
            report = log_probabilities(logits[r], token_id, num_logprobs)
            for column, values in zip(outputs[1:], report, strict=True):
                column[r, : len(values)] = values
    return outputs


def report(logits: Float32Array, token_ids: Int32Array, num_logprobs: Int32Array) -> LogprobOutputs:
    """For each row of logits [R, V] its token and the most likely ones, as many as asked for."""
    shape = (len(logits), int(num_logprobs.max(initial=0)) + 1)
    outputs = LogprobOutputs(
        np.full(shape, -1, np.int32), np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
    )
    for r in range(len(logits)):
        if np.isfinite(logits[r]).all():
            values = log_probabilities(logits[r], token_ids[r], num_logprobs[r])
            for column, row in zip(outputs, values, strict=True):
                column[r, : len(row)] = row
    return outputs


def processed_logits(logits: Float32Array, inputs: SamplingInputs, r: int) -> Float32Array:
    """logit_bias, banned tokens, then the repetition, frequency and presence penalties. [V]"""
    logits = logits.copy()
    bias = slice(inputs.bias_starts[r], inputs.bias_starts[r + 1])
    logits[inputs.bias_ids[bias]] += inputs.bias_values[bias]
    logits[inputs.banned_ids[inputs.banned_starts[r] : inputs.banned_starts[r + 1]]] = -np.inf

    history = inputs.history[inputs.history_starts[r] : inputs.history_starts[r + 1]]
    seen = np.unique(history)
    penalty = inputs.repetition_penalty[r]  # Keskar et al. 2019, CTRL
    logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
    generated, counts = np.unique(history[inputs.num_prompt_tokens[r] :], return_counts=True)
    logits[generated] -= inputs.frequency_penalty[r] * counts.astype(np.float32)
    logits[generated] -= inputs.presence_penalty[r]
    return logits


def draw(logits: Float32Array, inputs: SamplingInputs, r: int) -> int:
    """Greedy at temperature 0 (the first of equals), else a token by its probability under the filters."""
    if inputs.temperature[r] == 0:
        return int(logits.argmax())
    scaled = (logits - logits.max()) / inputs.temperature[r]  # the largest is 0
    cutoff = np.float32(-np.inf)
    if 0 < inputs.top_k[r] < len(scaled):
        cutoff = np.sort(scaled)[-inputs.top_k[r]]
    weights = np.where(scaled >= cutoff, np.exp(scaled), 0).astype(np.float64)
    if inputs.top_p[r] < 1:
        order = np.argsort(-scaled, kind="stable")
        enough = np.cumsum(weights[order]) >= np.float64(inputs.top_p[r]) * weights.sum()
        cutoff = max(cutoff, scaled[order[enough.argmax()]])
    if inputs.min_p[r] > 0:
        cutoff = max(cutoff, np.log(inputs.min_p[r]))
    weights[scaled < cutoff] = 0

    # Counter-based (Philox, Salmon et al. 2011): the number depends on seed and position alone.
    generator = np.random.Philox(key=int(inputs.seed[r]), counter=int(inputs.position[r]))
    target = np.random.Generator(generator).random() * weights.sum()
    beyond = np.cumsum(weights) > target
    return int(beyond.argmax())


def log_probabilities(
    logits: Float32Array, token_id: int, num_logprobs: int
) -> tuple[Int32Array, Float32Array, Int32Array]:
    """Ids, log-probabilities and ranks of a token and of the most likely ones."""
    shifted = (logits - logits.max()).astype(np.float64)
    logprobs = shifted - np.log(np.exp(shifted).sum())
    most_likely = np.argsort(-logits, kind="stable")[:num_logprobs]
    ids = np.array([token_id, *most_likely], np.int32)
    ranks = np.array([1 + (logits > logits[token_id]).sum(), *range(1, len(most_likely) + 1)], np.int32)
    return ids, logprobs[ids].astype(np.float32), ranks
