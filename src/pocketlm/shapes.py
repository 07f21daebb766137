"""Shapes: GPT-2 in its published sizes with random weights, to plan for a machine without a download.

`shape:gpt2` takes the memory and the time of gpt2. What it writes means nothing: it uses the bundled
model's tokenizer, so most of its tokens have no text, and no token ends an answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm.errors import ModelLoadError
from pocketlm.hub import BUNDLED, SHAPE_PREFIX
from pocketlm.models import CheckpointHeader, gpt2
from pocketlm.models.checkpoint_file import CheckpointFile, StoredTensor
from pocketlm.models.config_file import ConfigFile

# The fields of their config.json in which they differ.
SHAPES = {
    "distilgpt2": {"n_layer": 6, "n_embd": 768, "n_head": 12},
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "gpt2-medium": {"n_layer": 24, "n_embd": 1024, "n_head": 16},
    "gpt2-large": {"n_layer": 36, "n_embd": 1280, "n_head": 20},
    "gpt2-xl": {"n_layer": 48, "n_embd": 1600, "n_head": 25},
}
COMMON = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024}

STANDARD_DEVIATION = 0.02  # GPT-2's own before training
NUM_DRAWN = 4_194_301  # a prime, so that no two rows of a matrix are equal


def shape_header(name: str) -> CheckpointHeader:
    """What the header of a checkpoint of that size says; `name` is shape:NAME. ModelLoadError."""
    size = SHAPES.get(name.removeprefix(SHAPE_PREFIX))
    if size is None:
        known = ", ".join(SHAPE_PREFIX + shape for shape in SHAPES)
        raise ModelLoadError(f"there is no shape {name!r}; shapes are {known}")
    config = ConfigFile(Path(name), {**COMMON, **size})
    spec = gpt2.read_spec(config)
    sources = gpt2.tensor_sources(config, spec.num_layers, names=frozenset())
    stored = {
        source.name: spec.weight_shape(slot) for slot, source in sources.items() if not source.is_transposed
    }
    return CheckpointHeader(
        folder=BUNDLED,  # for its tokenizer
        model_type="gpt2",
        spec=spec,
        file=RandomWeights(stored),
        sources=sources,
        eos_token_ids=(),
    )


class RandomWeights(CheckpointFile):
    """Random float16 tensors in place of a file's, drawn when the first of them is asked for.

    All matrices are parts of one array of the size of the largest, so they take no more than that. It is
    the token embedding, which stays in memory when a model is loaded.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.folder = BUNDLED
        self._tensors = {name: _undrawn(shape) for name, shape in shapes.items()}
        self._size = max(math.prod(shape) for shape in shapes.values())
        self._values: NDArray[np.float16] | None = None
        self._start = 0  # of the next matrix

    @property
    def paths(self) -> list[Path]:
        return []

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        assert shape == self._tensors[name].shape
        if len(shape) == 1:
            is_norm = name.endswith(".weight")
            return np.full(shape, 1 if is_norm else 0, np.float16)
        if self._values is None:
            drawn = np.random.default_rng(0).standard_normal(NUM_DRAWN, np.float32) * STANDARD_DEVIATION
            self._values = np.resize(drawn.astype(np.float16), self._size)
        size = math.prod(shape)
        start = self._start % (self._size - size + 1)
        self._start += size
        return self._values[start : start + size].reshape(shape)


def _undrawn(shape: tuple[int, ...]) -> StoredTensor:
    """What the header says: the bytes have a number and are not there yet."""
    data = np.broadcast_to(np.uint8(0), 2 * math.prod(shape))
    return StoredTensor(Path(SHAPE_PREFIX), "F16", shape, data)
