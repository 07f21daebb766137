"""The files between prepare and train: train.npy, validation.npy (uint16 ids) and data.json about them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.errors import RecipeError

TokenIds = NDArray[np.uint16]


@dataclass(frozen=True)
class Span:
    """One source's part of the training tokens."""

    repository: str
    begin: int
    end: int
    weight: float

    @property
    def drawn(self) -> float:
        """How often training draws from it, up to a factor that all sources share."""
        return self.weight * (self.end - self.begin)


@dataclass(frozen=True)
class TokenFiles:
    """The tokens of a prepared folder, and the batches training draws from them."""

    train: TokenIds  # [T], mapped from the file
    validation: TokenIds  # [T']
    validation_bytes: int  # of the text they encode
    vocab_size: int
    spans: tuple[Span, ...]
    digest: str  # of all of it: a run goes on only with the tokens it began with

    def batch(self, step: int, *, batch_size: int, context: int, seed: int) -> NDArray[np.int64]:
        """The tokens of a step [batch_size, context + 1], a function of the seed and the step alone.

        Each row begins anywhere in one source; sources are drawn by weight times length.
        """
        rng = np.random.Generator(np.random.PCG64([seed, step]))
        drawn = np.array([span.drawn for span in self.spans])
        chosen = rng.choice(len(self.spans), size=batch_size, p=drawn / drawn.sum())
        rows = []
        for index in chosen:
            span = self.spans[index]
            begin = rng.integers(span.begin, span.end - context)
            rows.append(self.train[begin : begin + context + 1])
        return np.stack(rows).astype(np.int64)


def write(
    data: Path,
    *,
    train: TokenIds,
    validation: TokenIds,
    validation_bytes: int,
    vocab_size: int,
    spans: list[Span],
) -> None:
    np.save(data / "train.npy", train, allow_pickle=False)
    np.save(data / "validation.npy", validation, allow_pickle=False)
    about = {
        "vocab_size": vocab_size,
        "validation_bytes": validation_bytes,
        "sources": [asdict(span) for span in spans],
    }
    (data / "data.json").write_text(json.dumps(about, indent=2) + "\n")


def read(data: Path, context: int) -> TokenFiles:
    """The tokens of a prepared folder, long enough for windows of `context`, or a RecipeError."""
    try:
        content = (data / "data.json").read_bytes()
        train = np.load(data / "train.npy", mmap_mode="r", allow_pickle=False)
        validation = np.load(data / "validation.npy", allow_pickle=False)
    except OSError as error:
        raise RecipeError(
            f"{data} is not a folder that training.prepare wrote: {error.filename or error} is missing; "
            "run it first"
        ) from error
    about = json.loads(content)
    spans = tuple(Span(**span) for span in about["sources"])
    for name, length in [(span.repository, span.end - span.begin) for span in spans] + [
        ("the validation text", len(validation))
    ]:
        if length <= context:
            raise RecipeError(f"{name} has {length} tokens, and a context of {context} needs more; lower it")
    digest = hashlib.blake2b(content, digest_size=16)
    digest.update(train)
    digest.update(validation)
    return TokenFiles(
        train, validation, about["validation_bytes"], about["vocab_size"], spans, digest.hexdigest()
    )
