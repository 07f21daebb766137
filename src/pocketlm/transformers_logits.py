"""Logits of Hugging Face Transformers in float32, to compare with; torch is imported only when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pocketlm.accuracy import CHUNK
from pocketlm.kernels.inputs import Float32Array


def is_installed() -> bool:
    return find_spec("torch") is not None and find_spec("transformers") is not None


class TransformersModel:
    """A checkpoint as Transformers runs it. Its weights are all in memory, in float32."""

    def __init__(self, folder: Path, num_threads: int) -> None:
        # By name, as type checking must work where they are not installed.
        transformers: Any = import_module("transformers")
        self._torch: Any = import_module("torch")
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self._torch.set_num_threads(num_threads)
        self.version: str = transformers.__version__
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=self._torch.float32, local_files_only=True
        ).eval()

    def logits_of(self, token_ids: list[int]) -> Iterator[Float32Array]:
        """The logits of every position in turn, as chunks [CHUNK or fewer, V]."""
        with self._torch.inference_mode():
            logits: Float32Array = self._model(self._torch.tensor([token_ids])).logits[0].numpy()
        for start in range(0, len(token_ids), CHUNK):
            yield logits[start : start + CHUNK]
