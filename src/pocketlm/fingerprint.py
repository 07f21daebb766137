"""A short digest of all that decides a model's tokens, equal on every machine that has the same files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from pocketlm.errors import ModelLoadError

PIECE_BYTES = 32 << 20  # hashed by one thread; part of the definition, as the digest is one of digests
READ_BYTES = 1 << 20
SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "vocab.json", "merges.txt")


def fingerprint(content: str, how_it_runs: dict[str, str]) -> str:
    """Of the content of a model's files, and of `how_it_runs` (number format, instruction set, ...)."""
    parts = (
        version("pocketlm"),
        content,
        *(f"{name}={value}" for name, value in sorted(how_it_runs.items())),
    )
    return hashlib.sha256(b"\0".join(part.encode() for part in parts)).hexdigest()[:32]


def content_digest(folder: Path, weight_files: list[Path]) -> str:
    """Of every byte of a model's files, so that no edit goes unseen.

    Reading them all takes a small part of the time that packing them takes. Folders and times do not
    count, so that replicas agree.
    """
    files = [folder / name for name in SMALL_FILES if (folder / name).exists()] + weight_files
    try:
        pieces = [piece for path in files for piece in _pieces(path)]
        with ThreadPoolExecutor(thread_name_prefix="pocketlm-fingerprint") as pool:
            digests = list(pool.map(_digest, pieces))
    except OSError as error:
        raise ModelLoadError(f"{error.filename} cannot be read: {error.strerror}") from error
    total = hashlib.sha256()
    for (path, start), digest in zip(pieces, digests, strict=True):
        total.update(f"{path.name} {start} ".encode() + digest)
    return total.hexdigest()


def _pieces(path: Path) -> Iterator[tuple[Path, int]]:
    """The file, cut into ranges of PIECE_BYTES; an empty one is one piece."""
    for start in range(0, max(1, path.stat().st_size), PIECE_BYTES):
        yield path, start


def _digest(piece: tuple[Path, int]) -> bytes:
    path, start = piece
    digest = hashlib.sha256()
    left = PIECE_BYTES
    with path.open("rb") as file:
        file.seek(start)
        while left and (content := file.read(min(left, READ_BYTES))):
            digest.update(content)
            left -= len(content)
    return digest.digest()
