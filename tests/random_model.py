"""A small random model: a spec and weights drawn from a seeded NumPy generator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm.kernels.spec import DecoderSpec

BASE = DecoderSpec(
    vocab_size=97,
    hidden_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=10,
    intermediate_size=72,
    max_positions=96,
    norm="layer",
    norm_epsilon=1e-5,
    activation="gelu_tanh",
    attention_scales=(10**-0.5,) * 2,
)


def random_spec(**changes: Any) -> DecoderSpec:
    return replace(BASE, **changes)


def random_weights(
    spec: DecoderSpec,
    *,
    seed: int = 0,
    biases: bool = True,
    learned_positions: bool = True,
    shared_norm: bool = False,
    dtype: type = np.float32,
) -> dict[str, NDArray[Any]]:
    """Every weight the spec names. `shared_norm`: no mlp_norm, as a parallel residual may have it."""
    rng = np.random.Generator(np.random.PCG64(seed))

    def draw(*shape: int, scale: float = 0.3) -> NDArray[Any]:
        return (rng.standard_normal(shape) * scale).astype(dtype)

    weights = {}
    for name, (rows, columns) in spec.matrix_shapes().items():
        # Outputs about as large as inputs: a model so wild that rounding decides would test nothing.
        weights[name] = draw(rows, columns, scale=0.5 if name == "token_embedding" else 1.2 / rows**0.5)
        if biases and name != "token_embedding":
            weights[name.replace("weight", "bias")] = draw(columns)
    norms = ["final_norm"]
    for i in range(spec.num_layers):
        norms += [f"layers.{i}.attention_norm"] + ([] if shared_norm else [f"layers.{i}.mlp_norm"])
    for name in norms:
        weights[name + ".weight"] = 1 + draw(spec.hidden_size)
        if spec.norm == "layer":
            weights[name + ".bias"] = draw(spec.hidden_size)
    if learned_positions:
        weights["position_embedding"] = draw(spec.max_positions + spec.position_offset, spec.hidden_size)
    return weights
