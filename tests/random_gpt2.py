"""Draws GPT-2 configurations that between them use everything models/gpt2.py reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from pocketlm.models.gpt2 import ACTIVATIONS

NUM_NEW_TOKENS = 24
MAX_PROMPT_TOKENS = 30


def draw_options(rng: np.random.Generator, index: int) -> dict[str, Any]:
    """Arguments of `checkpoints.write_checkpoint`. What must not be missed cycles with the index."""
    head_dim = (5, 12, 7, 20, 16, 33, 8)[index % 7]
    num_heads = int(rng.integers(1, 6))
    return {
        "seed": int(rng.integers(2**32)),
        "dtype": ("F32", "F16", "BF16")[index % 3],
        "shards": int(rng.integers(1, 4)),
        "prefix": str(rng.choice(["transformer.", ""])),
        "tied": index % 2 == 0,
        "vocab_size": int(rng.choice([97, 131, 257, 300, 401, 499])),
        "n_positions": MAX_PROMPT_TOKENS + NUM_NEW_TOKENS + int(rng.integers(20)),
        "n_embd": num_heads * head_dim,
        "n_head": num_heads,
        "n_layer": int(rng.integers(1, 5)),
        "n_inner": int(rng.integers(1, 200)) if rng.integers(2) else None,
        "activation_function": list(ACTIVATIONS)[index % len(ACTIVATIONS)],
        "layer_norm_epsilon": float(rng.choice([1e-3, 1e-5, 1e-6, 1e-12])),
        "scale_attn_weights": bool(rng.integers(4)),
        "scale_attn_by_inverse_layer_idx": bool(rng.integers(2)),
        "reorder_and_upcast_attn": bool(rng.integers(2)),
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def draw_prompt(rng: np.random.Generator, vocab_size: int) -> list[int]:
    return rng.integers(vocab_size, size=rng.integers(1, MAX_PROMPT_TOKENS + 1)).tolist()
