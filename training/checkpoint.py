"""A training run on disk: tensors in safetensors, everything else as JSON in the same file's header."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from training.errors import RecipeError

Tensors = dict[str, Any]  # name -> torch.Tensor
KEY = "pocketlm"  # of the JSON among the file's metadata


def save(path: Path, tensors: Tensors, about: dict[str, Any]) -> None:
    """Write under another name first, so that an interruption leaves the previous file whole."""
    partial = path.with_suffix(".partial")
    copies = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    save_file(copies, partial, metadata={KEY: json.dumps(about), "format": "pt"})
    os.replace(partial, path)


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors, on the CPU, and what was said about them, or a RecipeError."""
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()[KEY])
            return {name: file.get_tensor(name) for name in file.keys()}, about
    except FileNotFoundError as error:
        raise RecipeError(f"{path} does not exist; run training.train first") from error
    except (SafetensorError, KeyError, TypeError) as error:
        raise RecipeError(f"{path} is not a checkpoint of training.train: {error}") from error
