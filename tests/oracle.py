"""What Transformers answers. Only what runs with torch installed imports this."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from pocketlm.kernels.inputs import Float32Array

logging.set_verbosity_error()
logging.disable_progress_bar()


def greedy(model: Any, prompt: Sequence[int], num_tokens: int) -> tuple[list[int], Float32Array]:
    """The most likely continuation and the logits of each step [num_tokens, V], with no cache."""
    tokens: list[int] = []
    logits = []
    for _ in range(num_tokens):
        with torch.inference_mode():
            logits.append(model(torch.tensor([[*prompt, *tokens]])).logits[0, -1].numpy())
        tokens.append(int(logits[-1].argmax()))
    return tokens, np.stack(logits)


def load(folder: Path) -> Any:
    """The model in float32, its mathematics as written: attention in PyTorch operations."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def rounding(model: Any, prompt: Sequence[int], tokens: Sequence[int], logits: Float32Array) -> float:
    """How far rounding took the logits of `greedy`: their distance from those of the same model in
    float64, as a share of the largest one."""
    exact = copy.deepcopy(model).double()
    for layer in exact.transformer.h:
        layer.attn.reorder_and_upcast_attn = False  # that path insists on float32
    with torch.inference_mode():
        exact_logits = exact(torch.tensor([[*prompt, *tokens[:-1]]])).logits[0, len(prompt) - 1 :].numpy()
    return float(np.abs(logits - exact_logits).max() / np.abs(exact_logits).max())


def smallest_margin(logits: Float32Array) -> float:
    """The least by which a chosen token led, as a share of the largest logit."""
    best = np.sort(logits, axis=1)[:, -2:]
    return float((best[:, 1] - best[:, 0]).min() / np.abs(logits).max())
