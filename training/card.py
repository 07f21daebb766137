"""The model's card: what it is, what was measured, and whose text it learned from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from training.errors import RecipeError
from training.recipe import Recipe
from training.sources import attribution

BEGIN = "<!-- written by training.evaluate -->"
END = "<!-- end -->"
FIGURES = re.compile(f"(?<={BEGIN}\n).*?(?={END})", re.DOTALL)

CARD = """\
# pocketlm bundled model

A small GPT-2 type language model ({num_layers} layers, width {hidden_size}, {num_heads} heads,
context {context}, vocabulary {vocab_size:,}, {millions:.1f} M parameters, float16), trained from scratch on
plain English technical prose: cloud-native projects, machine-learning guides, programming-language proposals.
It continues text in that style; it knows little, invents freely, and is no assistant. It is there so that
everything works with no network.

| | |
|---|---|
| training | {tokens:.1f} M tokens in {minutes:.1f} minutes on {device}, {step} steps of {num_steps} |
| method | {dtype}, Muon for the matrices and AdamW for the rest, linear decay, dropout {dropout} |
| licence of the weights | Apache-2.0 |

{begin}
{end}

## Text it was trained on

Markup, code blocks, tables and links were stripped. With thanks to the authors, under these licences:

{attribution}
"""


def card(recipe: Recipe, about: dict[str, Any]) -> str:
    """A new card; `about` is what train.py says of a run. Its figures are still to be written."""
    return CARD.format(
        **recipe.values(),
        millions=recipe.num_parameters / 1e6,
        tokens=about["step"] * recipe.batch_tokens / 1e6,
        minutes=about["train_s"] / 60,
        device=about["device"],
        step=about["step"],
        begin=BEGIN,
        end=END,
        attribution=attribution(),
    )


def write_figures(folder: Path, figures: str) -> None:
    """Put Markdown into the card of a model's folder, in the place of what was measured before."""
    path = folder / "README.md"
    text = path.read_text() if path.exists() else ""
    if not FIGURES.search(text):
        raise RecipeError(f"{path} has no place for the figures; give it the lines {BEGIN} and {END}")
    path.write_text(FIGURES.sub(lambda _: f"{figures}\n", text))
