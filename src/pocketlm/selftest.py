"""The compiled kernels against the NumPy reference, on a small random model."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm import kernels
from pocketlm.accuracy import logits_of
from pocketlm.kernels import reference
from pocketlm.kernels.inputs import Float32Array
from pocketlm.kernels.spec import DecoderSpec

# The largest difference of a logit, as a share of the largest logit, that rounding can explain. Where
# activations are rounded, a sum that differs in its last bit may round one the other way.
TOLERANCES = {"float32": 1e-5, "bfloat16": 1e-2, "int8": 3e-2, "int4": 3e-2}

SPEC = DecoderSpec(
    vocab_size=97,
    hidden_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=10,
    intermediate_size=72,
    max_positions=96,
    norm="layer",
    norm_epsilon=1e-5,
    activation="gelu_tanh",
    attention_scales=(10**-0.5,) * 2,
    gated_mlp=True,
    rotary_frequencies=(1.0, 0.1),
)


def max_difference(isa: str, dtype: str) -> float:
    """The largest difference between the logits of an instruction set and those of the reference."""
    rounds = isa in kernels.ISAS_THAT_ROUND
    expected = _logits(reference.Decoder(SPEC, _weights(), dtype=dtype, rounds_activations=rounds))
    found = _logits(kernels.create_decoder(SPEC, _weights(), dtype=dtype, num_threads=2, isa_name=isa))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def _logits(decoder: kernels.Decoder) -> Float32Array:
    token_ids = np.random.default_rng(1).integers(SPEC.vocab_size, size=SPEC.max_positions).tolist()
    return np.concatenate(list(logits_of(decoder, token_ids)))


def _weights() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {**SPEC.matrix_shapes(), "position_embedding": (96, 40)}
    weights = {name: rng.standard_normal(shape) / shape[0] ** 0.5 for name, shape in shapes.items()}
    norms = [f"layers.{i}.{name}" for i in range(SPEC.num_layers) for name in ("attention_norm", "mlp_norm")]
    for name in (*norms, "final_norm"):
        weights[f"{name}.weight"] = 1 + rng.standard_normal(SPEC.hidden_size) / 4
    return {name: weight.astype(np.float32) for name, weight in weights.items()}
