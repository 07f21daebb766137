"""Smoothing: the same function, no channel that sticks out, and int8 that stands outliers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from driver import SequenceDriver
from outliers import Weights, plant_in_norms, plant_in_residual, sampled_windows
from random_model import random_spec, random_weights

from pocketlm import kernels
from pocketlm.accuracy import PASSAGE, compare
from pocketlm.calibration import matrix_inputs
from pocketlm.config import EngineConfig
from pocketlm.hub import BUNDLED
from pocketlm.kernels import Decoder, DecoderSpec, create_decoder
from pocketlm.loading import resolve_dtype
from pocketlm.models import load_checkpoint
from pocketlm.smoothing import STICKS_OUT, peaks_of, smooth
from pocketlm.text.tokenizer import Tokenizer

TOKEN_IDS = np.random.default_rng(0).integers(97, size=50).tolist()
ROTARY = tuple(float(10000 ** (-i / 5)) for i in range(5))
ARCHITECTURES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"activation": "gelu"}, {"biases": False, "dtype": np.float16}),
    ({"num_kv_heads": 2, "gated_mlp": True, "norm": "rms", "rotary_frequencies": ROTARY}, {}),
    ({"parallel_residual": True, "num_kv_heads": 1}, {"shared_norm": True}),
    ({"parallel_residual": True, "gated_mlp": True}, {"shared_norm": True, "learned_positions": False}),
]

needs_core = pytest.mark.skipif(
    kernels.isa()[0] == "reference", reason="the bundled model is slow without it"
)


def with_outliers(spec: DecoderSpec, **options: Any) -> Weights:
    """Random weights; some channels of each norm, of the values and of `up` are larger."""
    weights = random_weights(spec, **options)
    for name in weights:
        if name.endswith(("norm.weight", "norm.bias", "up.weight", "up.bias")):
            weights[name][..., [3, 11]] *= 40
        if name.endswith(("qkv.weight", "qkv.bias")):
            weights[name][..., [-2, -7]] *= 20
    return weights


def decoder(spec: DecoderSpec, weights: Any, dtype: str = "float32", isa: str | None = None) -> Decoder:
    return create_decoder(spec, weights, dtype=dtype, num_threads=2, isa_name=isa)


@pytest.mark.parametrize(("changes", "options"), ARCHITECTURES)
@pytest.mark.parametrize("isa", kernels.available_isas())
def test_the_function_is_the_same_to_the_last_bit(
    isa: str, changes: dict[str, Any], options: dict[str, Any]
) -> None:
    """Powers of two round nothing, so even float32 logits do not move."""
    spec = random_spec(**changes)
    weights = with_outliers(spec, **options)
    smoothed = smooth(spec, weights, TOKEN_IDS)
    assert any((smoothed[name] != weights[name]).any() for name in weights)
    before, after = (
        SequenceDriver(decoder(spec, each, isa=isa), 50).forward(TOKEN_IDS) for each in (weights, smoothed)
    )
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(("changes", "options"), ARCHITECTURES)
def test_afterwards_no_channel_sticks_out(changes: dict[str, Any], options: dict[str, Any]) -> None:
    spec = random_spec(**changes)
    weights = with_outliers(spec, **options)

    def largest_ratios(weights: Any) -> dict[str, float]:
        peaks = matrix_inputs(spec, weights, TOKEN_IDS, keep=peaks_of)
        folded = {s: p for s, p in peaks.items() if spec.gated_mlp or not s.endswith("down")}
        return {slot: float(peaks.max() / np.median(peaks)) for slot, peaks in folded.items()}

    before, after = largest_ratios(weights), largest_ratios(smooth(spec, weights, TOKEN_IDS))
    assert min(before.values()) > 5
    assert max(after.values()) <= 1.2 * STICKS_OUT  # heads that share a value share its scale


def test_what_does_not_stick_out_is_left_alone() -> None:
    spec = random_spec()
    weights = random_weights(spec)
    for name in weights:
        if "norm" in name:
            weights[name][:] = name.endswith("weight")
    smoothed = smooth(spec, weights, TOKEN_IDS)
    assert all(smoothed[name] is weights[name] for name in weights if name.startswith("layers.0.up"))
    assert list(smoothed) == list(weights) and len(smoothed) == len(weights)


def test_the_bundled_model_is_left_alone() -> None:
    """Smoothing is for outliers; nothing changes where there are none."""
    checkpoint = load_checkpoint(BUNDLED)
    token_ids = Tokenizer.from_folder(BUNDLED).encode(PASSAGE)
    smoothed = smooth(checkpoint.spec, checkpoint.weights, token_ids)
    assert all(smoothed[name] is weight for name, weight in checkpoint.weights.items())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_left_alone(value: float) -> None:
    spec = random_spec()
    weights = random_weights(spec)
    weights["token_embedding"][:] = value
    smoothed = smooth(spec, weights, TOKEN_IDS)
    assert all(smoothed[name] is weights[name] for name in weights)


def test_nothing_to_look_at_means_nothing_to_do() -> None:
    spec = random_spec()
    weights = with_outliers(spec)
    smoothed = smooth(spec, weights, [])
    assert all(smoothed[name] is weights[name] for name in weights)


@needs_core
@pytest.mark.parametrize("plant", [plant_in_norms, plant_in_residual])
@pytest.mark.parametrize("factor", [30, 60])
def test_int8_stands_planted_outliers(plant: Any, factor: float) -> None:
    """On text sampled from the model: within 2 % of float32, and far beyond without smoothing."""
    checkpoint = load_checkpoint(BUNDLED)
    spec = checkpoint.spec
    weights = plant(spec, checkpoint.weights, [102, 110, 134, 158], factor)
    smoothed = smooth(spec, weights, Tokenizer.from_folder(BUNDLED).encode(PASSAGE))
    float32 = decoder(spec, weights)
    windows = sampled_windows(float32, num_windows=8, length=96)
    without, found = (compare(float32, decoder(spec, w, "int8"), windows) for w in (weights, smoothed))
    assert found.perplexity <= 1.02 * found.reference_perplexity
    assert found.mean_kl < 0.02
    assert without.perplexity > 1.1 * without.reference_perplexity


@needs_core
@pytest.mark.parametrize(
    ("channels", "dtype"), [([102, 110, 134, 158], "int8"), ([3, 77, 130, 201], "bfloat16")]
)
def test_what_auto_takes_stands_planted_outliers(channels: list[int], dtype: str) -> None:
    """Also where int8 does not."""
    checkpoint = load_checkpoint(BUNDLED)
    weights = plant_in_residual(checkpoint.spec, checkpoint.weights, channels, 40)
    planted = replace(checkpoint, weights=weights)
    found, _, taken = resolve_dtype(EngineConfig(), planted, Tokenizer.from_folder(BUNDLED), 2)
    assert found == dtype
    float32 = decoder(checkpoint.spec, weights)
    accuracy = compare(float32, taken, sampled_windows(float32, num_windows=8, length=96))
    assert accuracy.perplexity <= 1.02 * accuracy.reference_perplexity
