"""A small corpus of made-up sentences in the layout that training/prepare.py reads."""

from __future__ import annotations

import lzma
import random
from pathlib import Path

from training.sources import SOURCES

SYLLABLES = ("ba", "con", "der", "fi", "gan", "ho", "ker", "lum", "nat", "pod", "ral", "ser", "tin", "vor")


def sentences(rng: random.Random, num_words: int) -> str:
    """Words of up to three syllables, a full stop about every eighth."""
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(num_words)]
    return " ".join(word + "." * (rng.random() < 0.12) for word in words)


def document(rng: random.Random) -> str:
    return "\n\n".join(sentences(rng, 40) for _ in range(5))


def write_corpus(folder: Path, documents_each: int = 20, seed: int = 1) -> Path:
    """One file for each source, and the folder again."""
    rng = random.Random(seed)
    folder.mkdir()
    for source in SOURCES:
        text = "\n<|endoftext|>\n".join(document(rng) for _ in range(documents_each))
        (folder / source.file_name).write_bytes(lzma.compress(text.encode(), preset=0))
    return folder
