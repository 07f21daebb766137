"""The compiled forward pass equals the NumPy reference, on every instruction set this machine has."""

from __future__ import annotations

import gc
import re
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from random_model import random_spec, random_weights

from pocketlm import kernels
from pocketlm.kernels import reference
from pocketlm.kernels.inputs import BLOCK_SIZE, Float32Array, ForwardInputs
from pocketlm.kernels.spec import ACTIVATIONS, DecoderSpec

COMPILED_ISAS = kernels.available_isas()[:-1]

needs_core = pytest.mark.skipif(not COMPILED_ISAS, reason="the compiled core was not built")

# Changes to the spec, and options of random_weights.
SPECS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gpt2": ({}, {}),
    "odd sizes": (
        dict(hidden_size=35, num_heads=5, num_kv_heads=5, head_dim=7, intermediate_size=131, vocab_size=211),
        {},
    ),
    "head of 64": (dict(hidden_size=128, num_heads=2, num_kv_heads=2, head_dim=64, vocab_size=300), {}),
    "head of 80": (dict(hidden_size=80, num_heads=1, num_kv_heads=1, head_dim=80), {}),
    "half precision weights": ({}, dict(dtype=np.float16)),
    "llama": (
        dict(
            norm="rms",
            activation="silu",
            gated_mlp=True,
            num_kv_heads=2,
            rotary_frequencies=(1.0, 0.3, 0.1, 0.03, 0.01),
        ),
        dict(biases=False, learned_positions=False),
    ),
    "phi": (
        dict(parallel_residual=True, rotary_frequencies=(1.0, 0.1)),
        dict(learned_positions=False, shared_norm=True),
    ),
    "gpt-neox": (
        dict(parallel_residual=True, activation="gelu", rotary_frequencies=(1.0, 0.1)),
        dict(learned_positions=False),
    ),
    "opt": (dict(activation="relu", position_offset=2), {}),
    "gemma": (
        dict(
            norm="rms",
            gated_mlp=True,
            num_kv_heads=1,
            head_dim=24,
            embedding_scale=6.3,
            rotary_frequencies=(1.0, 0.2),
        ),
        dict(biases=False, learned_positions=False),
    ),
    **{name: ({"activation": name}, {}) for name in ACTIVATIONS},
}


# Of the differences of rows from the reference: the greatest, and the median. Where two numbers differ in
# the last bit one may round to another number, and then the later rows of its sequence differ too. With 8
# bits that is far but rare. Half precision keys and values are near, but so many that it is not rare: how
# many depends on the order in which the machine's BLAS adds. Activations in bfloat16 are in between.
TOLERANCES = {"float32": (1e-5, 1e-5), "bfloat16": (1e-3, 1e-4), "int8": (2e-2, 1e-5), "int4": (2e-2, 1e-5)}
ROUNDED_BFLOAT16 = (1e-2, 1e-3)


def ragged_batch(spec: DecoderSpec, rng: np.random.Generator, lengths: list[int]) -> list[ForwardInputs]:
    """Two steps over shuffled blocks: most of each prompt in the first, its rest in the second."""
    num_blocks = -(-max(lengths) // BLOCK_SIZE)
    tables = rng.permutation(num_blocks * len(lengths)).reshape(len(lengths), num_blocks).astype(np.int32)
    tokens = [rng.integers(0, spec.vocab_size, n).astype(np.int32) for n in lengths]
    cuts = [max(1, n - 1 - i % 3) for i, n in enumerate(lengths)]
    steps = []
    for starts, ends in (([0] * len(lengths), cuts), (cuts, lengths)):
        positions = [np.arange(a, b, dtype=np.int32) for a, b in zip(starts, ends, strict=True)]
        slots = [tables[s, p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for s, p in enumerate(positions)]
        query_starts = np.cumsum([0, *(len(p) for p in positions)]).astype(np.int32)
        steps.append(
            ForwardInputs(
                token_ids=np.concatenate([tokens[s][p] for s, p in enumerate(positions)]),
                positions=np.concatenate(positions),
                slot_mapping=np.concatenate(slots).astype(np.int32),
                block_tables=tables,
                context_lens=np.array(ends, np.int32),
                query_starts=query_starts,
                logit_rows=np.arange(query_starts[-1], dtype=np.int32)[::-1].copy(),
            )
        )
    return steps


def run(decoder: kernels.Decoder, steps: list[ForwardInputs], num_blocks: int) -> Float32Array:
    cache = decoder.new_kv_cache(num_blocks)
    return np.concatenate([decoder.forward(step, cache) for step in steps])


@needs_core
@pytest.mark.parametrize("isa", COMPILED_ISAS)
@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize("name", SPECS)
def test_equals_the_reference(name: str, dtype: str, isa: str) -> None:
    changes, options = SPECS[name]
    spec = random_spec(**changes)
    weights = random_weights(spec, **options)
    steps = ragged_batch(spec, np.random.default_rng(1), [1, 2, 17, 33, 50])
    rounds_activations = isa in kernels.ISAS_THAT_ROUND
    specification = reference.Decoder(spec, weights, dtype=dtype, rounds_activations=rounds_activations)
    compiled = kernels.create_decoder(spec, weights, dtype=dtype, num_threads=2, isa_name=isa)
    expected, found = (run(decoder, steps, 5 * 4) for decoder in (specification, compiled))
    differences = np.abs(found - expected).max(axis=1) / np.abs(expected).max()  # of each row
    is_rounded = rounds_activations and dtype == "bfloat16"
    farthest, middle = ROUNDED_BFLOAT16 if is_rounded else TOLERANCES[dtype]
    assert float(differences.max()) <= farthest
    assert float(np.median(differences)) <= middle


@needs_core
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("token_ids", 97),
        ("token_ids", -1),
        ("positions", 96),
        ("positions", 60),  # within the window, beyond the context
        ("slot_mapping", 20 * BLOCK_SIZE),
        ("block_tables", 20),
        ("context_lens", 0),
        ("context_lens", 97),
        ("query_starts", 1),
        ("logit_rows", 103),
        ("logit_rows", -1),
    ],
)
def test_bad_indices_are_refused(name: str, value: int) -> None:
    spec = random_spec()
    decoder = kernels.create_decoder(spec, random_weights(spec), dtype="float32", num_threads=1)
    cache = decoder.new_kv_cache(20)
    good = ragged_batch(spec, np.random.default_rng(1), [1, 2, 17, 33, 50])[0]
    bad = getattr(good, name).copy()
    bad[(0,) * bad.ndim] = value
    with pytest.raises(ValueError, match=name if name != "positions" else "position"):
        decoder.forward(good._replace(**{name: bad}), cache)
    decoder.forward(good, cache)


@needs_core
@pytest.mark.parametrize("problem", ["missing", "shape", "dtype"])
def test_bad_weights_are_refused_by_name(problem: str) -> None:
    spec = random_spec()
    weights = random_weights(spec)
    if problem == "missing":
        del weights["layers.1.up.weight"]
    elif problem == "shape":
        weights["layers.1.up.weight"] = weights["layers.1.up.weight"][:-1]
    else:
        weights["layers.1.up.weight"] = weights["layers.1.up.weight"].astype(np.float64)
    with pytest.raises(ValueError, match=r"layers\.1\.up\.weight"):
        kernels.create_decoder(spec, weights, dtype="int8", num_threads=1, isa_name=COMPILED_ISAS[0])


def misaligned(array: NDArray[Any]) -> NDArray[Any]:
    """A copy that begins 4 bytes after a multiple of 64."""
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + 4
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@needs_core
@pytest.mark.parametrize("dtype", kernels.DTYPES)
@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("layers.0.qkv.weight", None, "missing"),
        ("layers.0.qkv.bias", None, "missing"),
        ("layers.1.mlp_norm.weight", None, "missing"),
        ("head.weight", lambda panels: panels[:-1], "expected"),
        ("layers.0.down.bias", lambda bias: bias[:-1], "expected"),
        ("position_embedding", lambda table: table[1:], "expected"),
        ("layers.0.up.weight", lambda panels: np.asfortranarray(panels), "not contiguous"),
        ("layers.0.up.weight", misaligned, "multiple of 64"),
        ("layers.0.up.weight", lambda panels: panels.view(np.int8), "dtype"),
        ("final_norm.weight", lambda weight: weight.astype(np.float64), "dtype"),
    ],
)
def test_packed_weights_are_checked(name: str, change: Any, problem: str, dtype: str) -> None:
    """They may come from a file."""
    from pocketlm.kernels import compiled

    spec = random_spec(vocab_size=300)
    packed = compiled.pack(spec, random_weights(spec), dtype=dtype, num_threads=1)
    arrays = dict(packed.arrays)
    if change is None:
        del arrays[name]
    else:
        arrays[name] = change(arrays[name])
    bad = kernels.PackedWeights(dtype, arrays)
    with pytest.raises(ValueError, match=rf"weight {re.escape(name)} .*{problem}"):
        compiled.Decoder(spec, bad, num_threads=1, isa=COMPILED_ISAS[0])


@needs_core
@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_packed_weights_are_viewed_and_kept_alive(dtype: str) -> None:
    from pocketlm.kernels import compiled

    spec = random_spec()
    packed = compiled.pack(spec, random_weights(spec), dtype=dtype, num_threads=1)
    arrays = {name: array.copy() for name, array in packed.arrays.items()}
    for name in spec.matrix_shapes():
        arrays[name] = packed.arrays[name]  # where a decoder wants it
    steps = ragged_batch(spec, np.random.default_rng(1), [5, 9])
    expected, found = (
        compiled.Decoder(spec, kernels.PackedWeights(dtype, each), num_threads=1, isa=COMPILED_ISAS[0])
        for each in (packed.arrays, arrays)
    )
    norm = arrays["final_norm.weight"]
    del packed, arrays
    gc.collect()
    np.testing.assert_array_equal(run(found, steps, 2), run(expected, steps, 2))
    norm[:] = np.nan
    assert np.isnan(run(found, steps, 2)).all()


@pytest.mark.parametrize("isa", kernels.available_isas())
@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_one_bad_sequence_does_not_touch_the_others(dtype: str, isa: str) -> None:
    """NaN in the embedding of one token: it and those after it are not finite, and nobody else is touched."""
    spec = random_spec()
    weights = random_weights(spec)
    steps = ragged_batch(spec, np.random.default_rng(1), [5, 9])
    steps[0].token_ids[:] = np.arange(len(steps[0].token_ids))
    clean = kernels.create_decoder(spec, weights, dtype=dtype, num_threads=1, isa_name=isa)
    expected = clean.forward(steps[0], clean.new_kv_cache(2))
    weights["token_embedding"] = weights["token_embedding"].copy()
    weights["token_embedding"][1] = np.nan  # the second token of the first sequence
    decoder = kernels.create_decoder(spec, weights, dtype=dtype, num_threads=1, isa_name=isa)
    logits = decoder.forward(steps[0], decoder.new_kv_cache(2))
    touched = (steps[0].logit_rows >= 1) & (steps[0].logit_rows < steps[0].query_starts[1])
    assert touched.any() and not np.isfinite(logits[touched]).any()
    np.testing.assert_array_equal(logits[~touched], expected[~touched])


@pytest.mark.parametrize("isa", kernels.available_isas())
@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_rows_do_not_depend_on_batch_chunks_or_threads(dtype: str, isa: str) -> None:
    """Every sequence token by token, alone and on one thread, has bit for bit the logits of the batch."""
    spec = random_spec(hidden_size=128, num_heads=2, num_kv_heads=2, head_dim=64, vocab_size=130)
    weights = random_weights(spec)
    rng = np.random.default_rng(2)
    lengths = [1, 7, 18, 40]
    steps = ragged_batch(spec, rng, lengths)
    together = kernels.create_decoder(spec, weights, dtype=dtype, num_threads=2, isa_name=isa)
    cache = together.new_kv_cache(12)
    alone = kernels.create_decoder(spec, weights, dtype=dtype, num_threads=1, isa_name=isa)
    alone_cache = alone.new_kv_cache(12)
    for step in steps:
        logits = together.forward(step, cache)[np.argsort(step.logit_rows)]
        for s in range(len(lengths)):
            for t in range(step.query_starts[s], step.query_starts[s + 1]):
                single = ForwardInputs(
                    token_ids=step.token_ids[t : t + 1],
                    positions=step.positions[t : t + 1],
                    slot_mapping=step.slot_mapping[t : t + 1],
                    block_tables=step.block_tables[s : s + 1],
                    context_lens=step.positions[t : t + 1] + np.int32(1),
                    query_starts=np.array([0, 1], np.int32),
                    logit_rows=np.zeros(1, np.int32),
                )
                np.testing.assert_array_equal(alone.forward(single, alone_cache)[0], logits[t])


@pytest.mark.parametrize("isa", kernels.available_isas())
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_logits_do_not_depend_on_which_are_asked_for(dtype: str, parallel: bool, isa: str) -> None:
    """Any rows in any order, none, one more often than there are tokens: the logits all rows would have."""
    spec = random_spec(parallel_residual=parallel)
    weights = random_weights(spec)
    steps = ragged_batch(spec, np.random.default_rng(4), [30, 5, 12])
    num_tokens = len(steps[0].token_ids)
    every = steps[0]._replace(logit_rows=np.arange(num_tokens, dtype=np.int32))
    decoder = kernels.create_decoder(spec, weights, dtype=dtype, num_threads=2, isa_name=isa)
    cache = decoder.new_kv_cache(6)
    expected, later = decoder.forward(every, cache), decoder.forward(steps[1], cache)
    for rows in ([], [num_tokens - 1, 0, 3], [2] * (num_tokens + 30)):
        cache = decoder.new_kv_cache(6)
        asked = every._replace(logit_rows=np.array(rows, np.int32))
        np.testing.assert_array_equal(decoder.forward(asked, cache), expected[rows])
        np.testing.assert_array_equal(decoder.forward(steps[1], cache), later)  # all is in the cache
