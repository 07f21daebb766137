"""The card of a new model, and whether that of the bundled one is true."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from pocketlm import LLM, kernels
from pocketlm.hub import BUNDLED
from training.card import BEGIN, END, card, write_figures
from training.errors import RecipeError
from training.evaluate import PROMPTS, samples
from training.recipe import SMOKE
from training.sources import SOURCES, attribution

ROOT = Path(__file__).parents[2]
BUNDLED_CARD = (ROOT / "src" / "pocketlm" / "hub" / "bundled" / "README.md").read_text()
SAMPLE = re.compile(r"^Seed (\d+), `(.*)`; overlap .*:\n\n((?:    .*\n)+)", re.MULTILINE)


@pytest.mark.skipif(
    not kernels.isa()[0].startswith(("avx512_", "amx")), reason="a near tie may fall otherwise elsewhere"
)
def test_the_samples_of_the_bundled_card_are_what_the_model_says() -> None:
    listed = SAMPLE.findall(BUNDLED_CARD)
    drawn = samples(LLM(str(BUNDLED), dtype="float32"), " ")
    assert [(int(seed), prompt) for seed, prompt, _ in listed] == list(enumerate(PROMPTS, 1))
    for (_, _, text), sample in zip(listed, drawn, strict=True):
        assert textwrap.dedent(text).strip() == textwrap.dedent(sample.text).strip()


def test_every_source_is_thanked() -> None:
    notice = (ROOT / "NOTICE").read_text()
    assert attribution() in BUNDLED_CARD
    for source in SOURCES:
        assert re.search(rf"https://github\.com/{source.repository} +at {source.commit}\b", notice)


def test_figures_take_the_place_of_those_before(tmp_path: Path) -> None:
    about = {"step": 20, "train_s": 60.0, "device": "CPU"}
    text = card(SMOKE, about)
    assert "2 layers, width 64" in text and attribution() in text
    (tmp_path / "README.md").write_text(text)
    write_figures(tmp_path, r"bits \1 and more")
    write_figures(tmp_path, "other bits")
    assert (tmp_path / "README.md").read_text() == text.replace(f"{BEGIN}\n", f"{BEGIN}\nother bits\n")


def test_a_card_without_a_place_is_refused(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RecipeError, match=f"has no place for the figures; give it the lines {BEGIN}"):
            write_figures(tmp_path, "bits")
        (tmp_path / "README.md").write_text(f"{END}\n{BEGIN}\n")
