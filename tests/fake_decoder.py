"""A decoder without a model, whose next token is a hash of what it reads from the KV cache.

Each position of a sequence leaves (token id, position) in its slot. The logits of a row are made from
the slots 0 to its own position, read through the block table. So a wrong block table, slot, position or
stale block changes the answer, and `expected_output` knows the right one from the request alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from pocketlm.kernels.inputs import (
    BLOCK_SIZE,
    Float32Array,
    ForwardInputs,
    Int32Array,
    LogprobOutputs,
    SamplingInputs,
    SamplingOutputs,
)
from pocketlm.kernels.spec import DecoderSpec
from pocketlm.outputs import TokenLogprobs
from pocketlm.sampling import SamplingParams

VOCAB_SIZE = 97
MAX_POSITIONS = 256
NUM_CANDIDATES = 3  # sampling draws from this many of the most likely tokens

SPEC = DecoderSpec(
    vocab_size=VOCAB_SIZE,
    hidden_size=1,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=1,
    intermediate_size=1,
    max_positions=MAX_POSITIONS,
    norm="layer",
    norm_epsilon=1e-5,
    activation="relu",
    attention_scales=(1.0,),
)


@dataclass
class FakeKVCache:
    slots: Int32Array  # [num_blocks, BLOCK_SIZE] token id and position in one number

    @property
    def num_blocks(self) -> int:
        return len(self.slots)

    @property
    def num_bytes(self) -> int:
        return self.slots.nbytes


@dataclass
class FakeDecoder:
    errors: list[BaseException] = field(default_factory=list)  # raised by the next calls of forward
    nan_token_id: int | None = None  # the logits after this token are not finite
    batches: list[ForwardInputs] = field(default_factory=list)  # what forward was called with
    spec: DecoderSpec = SPEC
    dtype: str = "float32"
    num_threads: int = 1
    weights_bytes: int = 0

    def new_kv_cache(self, num_blocks: int) -> FakeKVCache:
        return FakeKVCache(np.full((num_blocks, BLOCK_SIZE), -1, np.int32))

    def forward(self, inputs: ForwardInputs, kv_cache: FakeKVCache) -> Float32Array:
        self.batches.append(inputs)
        if self.errors:
            raise self.errors.pop(0)
        assert all(array.dtype == np.int32 and array.flags.c_contiguous for array in inputs)
        assert len(set(inputs.slot_mapping.tolist())) == len(inputs.token_ids) == inputs.query_starts[-1]
        kv_cache.slots.reshape(-1)[inputs.slot_mapping] = _entry(inputs.token_ids, inputs.positions)
        logits = np.empty((len(inputs.logit_rows), VOCAB_SIZE), np.float32)
        for row, t in enumerate(inputs.logit_rows):
            s = np.searchsorted(inputs.query_starts, t, side="right") - 1
            length = inputs.positions[t] + 1
            assert length <= inputs.context_lens[s]
            blocks = inputs.block_tables[s, : -(-length // BLOCK_SIZE)]
            logits[row] = _logits(kv_cache.slots[blocks].reshape(-1)[:length])
            if inputs.token_ids[t] == self.nan_token_id:
                logits[row, 0] = np.nan
        return logits

    def sample(self, logits: Float32Array, inputs: SamplingInputs) -> SamplingOutputs:
        num_rows, width = len(logits), int(inputs.num_logprobs.max()) + 1
        outputs = SamplingOutputs(
            token_ids=np.full(num_rows, -1, np.int32),
            logprob_ids=np.full((num_rows, width), -1, np.int32),
            logprobs=np.zeros((num_rows, width), np.float32),
            ranks=np.full((num_rows, width), -1, np.int32),
        )
        for r in range(num_rows):
            if np.isnan(logits[r]).any():
                continue
            banned_ids = inputs.banned_ids[inputs.banned_starts[r] : inputs.banned_starts[r + 1]]
            token_id = _choose(
                logits[r],
                banned_ids.tolist(),
                float(inputs.temperature[r]),
                int(inputs.seed[r]),
                int(inputs.position[r]),
            )
            outputs.token_ids[r] = token_id
            if inputs.num_logprobs[r] >= 0:
                values = _logprobs(logits[r], token_id, int(inputs.num_logprobs[r]))
                _write(outputs.logprob_ids[r], outputs.logprobs[r], outputs.ranks[r], values)
        return outputs

    def log_probabilities(
        self, logits: Float32Array, token_ids: Int32Array, num_logprobs: Int32Array
    ) -> LogprobOutputs:
        shape = (len(logits), int(num_logprobs.max()) + 1)
        outputs = LogprobOutputs(
            np.full(shape, -1, np.int32), np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
        )
        for r in range(len(logits)):
            if not np.isnan(logits[r]).any():
                values = _logprobs(logits[r], int(token_ids[r]), int(num_logprobs[r]))
                _write(outputs.logprob_ids[r], outputs.logprobs[r], outputs.ranks[r], values)
        return outputs

    def worker_cpu_s(self) -> float | None:
        return 0.0


def expected_output(
    prompt_token_ids: list[int],
    params: SamplingParams,
    *,
    seed: int = 0,
    eos_token_ids: tuple[int, ...] = (),
    max_model_len: int = MAX_POSITIONS,
) -> list[int]:
    """What any correct engine answers on a FakeDecoder, computed from the request alone."""
    stop_ids = {*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)}
    tokens = list(prompt_token_ids)
    for num_output_tokens in range(params.num_new_tokens(len(tokens), max_model_len)):
        logits = _logits(_entry(np.array(tokens, np.int32), np.arange(len(tokens), dtype=np.int32)))
        banned_ids = sorted(stop_ids) if num_output_tokens < params.min_tokens else []
        tokens.append(_choose(logits, banned_ids, params.temperature, seed, len(tokens)))
        if tokens[-1] in stop_ids:
            break
    return tokens[len(prompt_token_ids) :]


def expected_prompt_logprobs(
    prompt_token_ids: list[int], params: SamplingParams
) -> list[TokenLogprobs] | None:
    """What any correct engine reports of a prompt on a FakeDecoder."""
    if params.prompt_logprobs is None:
        return None
    entries = _entry(np.array(prompt_token_ids, np.int32), np.arange(len(prompt_token_ids), dtype=np.int32))
    return [
        _logprobs(_logits(entries[: i + 1]), token_id, params.prompt_logprobs)
        for i, token_id in enumerate(prompt_token_ids[1:])
    ]


def _entry(token_ids: Int32Array, positions: Int32Array) -> Int32Array:
    return np.asarray(token_ids * MAX_POSITIONS + positions, np.int32)


def _logits(entries: Int32Array) -> Float32Array:
    digest = hashlib.blake2b(entries.tobytes(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little")).random(VOCAB_SIZE, np.float32)


def _choose(logits: Float32Array, banned_ids: list[int], temperature: float, seed: int, position: int) -> int:
    logits = logits.copy()
    logits[banned_ids] = -np.inf
    candidates = np.argsort(-logits, kind="stable")[:NUM_CANDIDATES]
    if temperature == 0:
        return int(candidates[0])
    digest = hashlib.blake2b(f"{seed} {position}".encode(), digest_size=8).digest()
    return int(candidates[int.from_bytes(digest, "little") % NUM_CANDIDATES])


def _logprobs(logits: Float32Array, token_id: int, num_most_likely: int) -> TokenLogprobs:
    """The logits themselves, where a model has log-probabilities."""
    order = np.argsort(-logits, kind="stable").tolist()
    ids = (token_id, *order[:num_most_likely])
    return TokenLogprobs(ids, tuple(float(logits[i]) for i in ids), tuple(1 + order.index(i) for i in ids))


def _write(ids: Int32Array, logprobs: Float32Array, ranks: Int32Array, values: TokenLogprobs) -> None:
    width = len(values.token_ids)
    ids[:width], logprobs[:width], ranks[:width] = values.token_ids, values.logprobs, values.ranks
