"""Plants channels in a model that are many times larger than the rest, as GPT-2's larger sizes have them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm.kernels import BLOCK_SIZE, Decoder, DecoderSpec, ForwardInputs

Weights = dict[str, NDArray[Any]]


def plant_in_norms(spec: DecoderSpec, weights: Weights, channels: list[int], factor: float) -> Weights:
    """What comes out of every norm is larger in these channels; the function stays what it was."""
    planted = {name: np.array(weight, np.float32) for name, weight in weights.items()}
    for norm, reader in norms_and_readers(spec):
        for kind in ("weight", "bias"):
            planted[f"{norm}.{kind}"][channels] *= factor
        planted[f"{reader}.weight"][channels] /= factor
    return planted


def plant_in_residual(spec: DecoderSpec, weights: Weights, channels: list[int], factor: float) -> Weights:
    """All that is added up in these channels is larger, and so is what comes out of every norm.

    The norms' weights are larger too, so that the other channels are about as large as before.
    """
    planted = plant_in_norms(spec, weights, channels, factor)
    for name in ("token_embedding", "position_embedding"):
        planted[name][:, channels] *= factor
    for i in range(spec.num_layers):
        for slot in ("attention_out", "down"):
            planted[f"layers.{i}.{slot}.weight"][:, channels] *= factor
            planted[f"layers.{i}.{slot}.bias"][channels] *= factor
    # A channel's part of the variance grows by factor squared.
    growth = np.sqrt(1 + len(channels) / spec.hidden_size * (factor**2 - 1))
    for norm, _ in norms_and_readers(spec):
        planted[f"{norm}.weight"] *= growth
        planted[f"{norm}.weight"][channels] /= factor
    return planted


def norms_and_readers(spec: DecoderSpec) -> list[tuple[str, str]]:
    """Of a plain decoder, as GPT-2 is."""
    pairs = [("final_norm", "head")]
    for i in range(spec.num_layers):
        pairs += [
            (f"layers.{i}.attention_norm", f"layers.{i}.qkv"),
            (f"layers.{i}.mlp_norm", f"layers.{i}.up"),
        ]
    return pairs


def sampled_windows(decoder: Decoder, num_windows: int, length: int) -> list[list[int]]:
    """Text that the model writes itself, at temperature 1; every window begins with token 0."""
    rng = np.random.default_rng(0)
    num_blocks = -(-length // BLOCK_SIZE)
    kv_cache = decoder.new_kv_cache(num_windows * num_blocks)
    block_tables = np.arange(num_windows * num_blocks, dtype=np.int32).reshape(num_windows, -1)
    token_ids = np.zeros((num_windows, length), np.int32)
    rows = np.arange(num_windows, dtype=np.int32)
    for t in range(length - 1):
        inputs = ForwardInputs(
            token_ids=np.ascontiguousarray(token_ids[:, t]),
            positions=np.full(num_windows, t, np.int32),
            slot_mapping=np.ascontiguousarray(block_tables[:, t // BLOCK_SIZE] * BLOCK_SIZE + t % BLOCK_SIZE),
            block_tables=block_tables,
            context_lens=np.full(num_windows, t + 1, np.int32),
            query_starts=np.arange(num_windows + 1, dtype=np.int32),
            logit_rows=rows,
        )
        logits = decoder.forward(inputs, kv_cache)
        token_ids[:, t + 1] = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    windows: list[list[int]] = token_ids.tolist()
    return windows
