"""Packed weights on disk: what a start would compute again, kept from the last one.

One safetensors file for each model and number format, mapped into memory read-only, so that the
processes of a machine share its pages. It holds all packed weights but the embedding tables, which are
looked up in the checkpoint as they are.

A file is used only if it was made from this checkpoint by this version, as its key says, and if its
checksums are right. Whatever else is found is packed again and replaced. Nothing here fails a load.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketlm import hub
from pocketlm.errors import ModelLoadError
from pocketlm.fingerprint import SMALL_FILES
from pocketlm.kernels.packed_weights import PACKING_VERSION, PackedWeights
from pocketlm.kernels.spec import TABLES
from pocketlm.models import CheckpointHeader
from pocketlm.models.checkpoint_file import read_safetensors
from pocketlm.smoothing import SMOOTHING_VERSION

log = logging.getLogger(__name__)

# As safetensors spells them.
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype(np.float32), "U8": np.dtype(np.uint8)}
ALIGNMENT = 64  # of the first array; those of odd sizes come last
PIECE_BYTES = 16 << 20  # checked by one thread
LEFT_BEHIND_S = 3600.0  # after which a file half written belongs to a process that is gone

Key = dict[str, Any]


@dataclass(frozen=True)
class Findings:
    """What the start that packed the weights found out about them."""

    content_digest: str  # of the checkpoint, see fingerprint.py
    auto_reason: str | None  # why dtype=auto took this number format, if it was asked
    answers: dict[str, list[int]]  # to the known-answer question, by instruction set


class PackedCache:
    """The files of one model."""

    def __init__(self, folder: Path | None, name: str, header: CheckpointHeader) -> None:
        """`folder` is the setting cache_dir; None is the user's cache folder."""
        self._folder = folder or default_folder()
        self._header = header
        identity = str(header.folder.resolve()) if hub.is_local(name) else name
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        self._stem = f"{re.sub(r'[^A-Za-z0-9._-]+', '-', Path(name).name)[:40]}-{digest}"
        self._key = _key(header)

    def load(self, dtype: str) -> tuple[PackedWeights, Findings] | None:
        """What is kept in this number format, or None."""
        path = self._path(dtype)
        if self._key is None or not path.exists():
            return None
        try:
            arrays, about = _read(path)
            if about["key"] != self._key:
                log.info("the packed weights in %s are of another checkpoint or version: packing again", path)
                return None
            findings = Findings(**about["findings"])
        except (ModelLoadError, OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the packed weights in %s are damaged (%s): packing again", path, error)
            return None
        log.info("packed weights: read from %s", path)
        return PackedWeights(dtype, {**arrays, **self._tables()}), findings

    def save(self, weights: PackedWeights, findings: Findings) -> None:
        """Keep them, in place of what was kept before. If that fails the log says why."""
        if self._key is None:
            return
        path = self._path(weights.dtype)
        about = {"key": self._key, "findings": vars(findings)}
        arrays = {name: array for name, array in weights.arrays.items() if name not in TABLES}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_left_behind()
            _write(path, arrays, about)
        except OSError as error:
            log.warning("packed weights cannot be kept in %s, so each start packs them: %s", path, error)
        else:
            log.info("packed weights: kept in %s", path)

    def _tables(self) -> dict[str, NDArray[Any]]:
        sources, spec = self._header.sources, self._header.spec
        return {
            name: self._header.file.tensor(sources[name].name, spec.weight_shape(name))
            for name in TABLES
            if name in sources
        }

    def _path(self, dtype: str) -> Path:
        return self._folder / f"{self._stem}-{dtype}.safetensors"

    def _remove_left_behind(self) -> None:
        for path in self._folder.glob(f"{self._stem}-*.tmp"):
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - LEFT_BEHIND_S:
                    path.unlink()


def default_folder() -> Path:
    """The user's cache folder, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "pocketlm"


def _key(header: CheckpointHeader) -> Key | None:
    """What packed weights depend on, without reading the weights. None for a model that has no files.

    Any write to a file changes its ctime, which nobody can set back, even where size and mtime stay.
    """
    if not header.file.paths:
        return None
    small = hashlib.sha256()
    files = {}
    try:
        for name in SMALL_FILES:
            path = header.folder / name
            small.update(name.encode() + (b"\1" + path.read_bytes() if path.exists() else b"\0"))
        for path in header.file.paths:
            found = path.stat()
            files[path.name] = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    except OSError:  # whoever needs that file will say so
        return None
    return {
        "pocketlm": version("pocketlm"),
        "packing": PACKING_VERSION,
        "smoothing": SMOOTHING_VERSION,
        "small_files": small.hexdigest(),
        "weight_files": files,
    }


def _write(path: Path, arrays: dict[str, NDArray[Any]], about: dict[str, Any]) -> None:
    """Write a file beside the one it replaces, so that readers see the old one or the whole new one."""
    # By the largest power of two that divides their sizes: so each is as well aligned as it can be.
    ordered = sorted(arrays.items(), key=lambda item: -(item[1].nbytes & -item[1].nbytes))
    header: dict[str, Any] = {}
    end = 0
    for name, array in ordered:
        start, end = end, end + array.nbytes
        [dtype] = [key for key, each in DTYPES.items() if each == array.dtype]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [start, end]}
    checksums = {name: list(_checksums(array)) for name, array in ordered}
    text = json.dumps({**about, "checksums": checksums}, sort_keys=True)
    header["__metadata__"] = {"about": text, "checksum": str(zlib.crc32(text.encode()))}
    content = json.dumps(header).encode()
    content += b" " * (-(8 + len(content)) % ALIGNMENT)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}-", suffix=".tmp")
    try:
        with open(descriptor, "wb") as file:
            file.write(len(content).to_bytes(8, "little") + content)
            for _, array in ordered:
                file.write(np.ascontiguousarray(array).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays, on the file's memory map, and what is known about them. ModelLoadError, ValueError, ..."""
    metadata, tensors = read_safetensors(path)
    if metadata["checksum"] != str(zlib.crc32(metadata["about"].encode())):
        raise ValueError("the checksum of its header is wrong")
    about = json.loads(metadata["about"])
    arrays = {
        name: tensor.data.view(DTYPES[tensor.dtype]).reshape(tensor.shape) for name, tensor in tensors.items()
    }
    with ThreadPoolExecutor(thread_name_prefix="pocketlm-checksum") as pool:
        found = pool.map(lambda array: list(_checksums(array)), arrays.values())
        if dict(zip(arrays, found, strict=True)) != about["checksums"]:
            raise ValueError("a checksum is wrong")
    return arrays, about


def _checksums(array: NDArray[Any]) -> Iterator[int]:
    """CRC-32 of each piece."""
    content = array.reshape(-1).view(np.uint8)
    for start in range(0, len(content), PIECE_BYTES):
        yield zlib.crc32(content[start : start + PIECE_BYTES].data)
