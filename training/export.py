"""A training run -> a model's folder in Hugging Face's format, in float16, with its card.

    python -m training.export RUN MODEL

Transformers, llama.cpp's converter and pocketlm read the folder as it is. `python -m training.evaluate`
fills in the card's figures and samples.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from training import checkpoint
from training.card import card
from training.errors import RecipeError, errors_reported
from training.recipe import Recipe
from training.train import build_model


def export(run: Path, folder: Path) -> None:
    if folder.exists():
        raise RecipeError(f"{folder} exists already; give a new folder, or remove it")
    weights, about = checkpoint.load(run / "best.safetensors")
    recipe = Recipe(**about["recipe"])
    model = build_model(recipe)
    model.load_state_dict({**weights, "lm_head.weight": weights["transformer.wte.weight"]})
    model.to(torch.float16)
    if not all(bool(values.isfinite().all()) for values in model.parameters()):
        raise RecipeError(f"a weight of {run} is beyond float16; train with a higher weight decay")
    # Dropout was for training; who fine-tunes it chooses anew.
    model.config.update({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "use_cache": True})
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0)
    model.save_pretrained(folder)
    shutil.copy(run / "tokenizer.json", folder)
    write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
            "model_max_length": recipe.context,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    (folder / "README.md").write_text(card(recipe, about))
    total = sum(path.stat().st_size for path in folder.iterdir())
    print(f"wrote {folder}: {recipe.num_parameters:,} parameters, {total / 1e6:.2f} MB")


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("model", type=Path)
    args = parser.parse_args()
    with errors_reported():
        export(args.run, args.model)


if __name__ == "__main__":
    main()
