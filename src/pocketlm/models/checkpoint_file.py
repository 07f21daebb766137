"""Safetensors on disk, one file or shards, as NumPy views of memory-mapped files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pocketlm.errors import ModelLoadError
from pocketlm.models.config_file import read_json_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}  # NumPy has no bfloat16


@dataclass(frozen=True)
class StoredTensor:
    path: Path
    dtype: str  # as safetensors spells it
    shape: tuple[int, ...]
    data: NDArray[np.uint8]  # its bytes, on the memory map

    @property
    def is_widened(self) -> bool:
        """Whether `CheckpointFile.tensor` makes a copy in memory, and not a view of the file."""
        return self.dtype == "BF16"

    @property
    def array_bytes(self) -> int:
        """The size of the array that `CheckpointFile.tensor` makes."""
        return 2 * self.data.nbytes if self.is_widened else self.data.nbytes


class CheckpointFile:
    """The tensors of one folder by name, whichever files hold them.

    Everything that can be wrong with the files is found when they are opened; nothing is read from
    them, apart from their headers, before `tensor` is called.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / SINGLE).exists():
            _, self._tensors = read_safetensors(folder / SINGLE)
        elif (folder / INDEX).exists():
            self._tensors = _read_shards(folder / INDEX)
        else:
            others = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
            found = f" but {others[0]}" if others else ""
            raise ModelLoadError(
                f"{folder} has no {SINGLE} or {INDEX}{found}; pocketlm reads safetensors only, so "
                "convert the checkpoint to safetensors first"
            )

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    @property
    def paths(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted({stored.path for stored in self._tensors.values()})

    def stored(self, name: str) -> StoredTensor:
        """What the header says of a tensor."""
        stored = self._tensors.get(name)
        if stored is None:
            raise ModelLoadError(f"the checkpoint in {self.folder} has no tensor {name}")
        if stored.dtype not in DTYPES:
            raise ModelLoadError(
                f"{stored.path}: tensor {name} has dtype {stored.dtype}, supported are {', '.join(DTYPES)}"
            )
        return stored

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """A tensor of the expected shape: float32 or float16 as stored, bfloat16 widened to float32."""
        stored = self.stored(name)
        if stored.shape != shape:
            raise ModelLoadError(
                f"{stored.path}: tensor {name} has shape {list(stored.shape)}, expected {list(shape)}"
            )
        values = stored.data.view(DTYPES[stored.dtype]).reshape(shape)
        if stored.is_widened:  # bfloat16 is the upper half of a float32
            return (values.astype(np.uint32) << 16).view(np.float32)
        return np.require(values, requirements="A")  # a copy only after an odd-sized neighbour


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """A file's metadata, and its tensors on its memory map. ModelLoadError."""
    try:
        # Checks the header's JSON, every offset against dtype and shape, and the length of the file.
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ModelLoadError(f"{path} is truncated or not a safetensors file: {error}") from error
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error}") from error

    content = np.asarray(np.memmap(path, np.uint8, "r"))
    header_bytes = int(content[:8].view("<u8")[0])
    header = json.loads(content[8 : 8 + header_bytes].tobytes())
    data = content[8 + header_bytes :]
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        tensors[name] = StoredTensor(path, entry["dtype"], tuple(entry["shape"]), data[start:stop])
    return metadata, tensors


def _read_shards(index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{index} has no weight_map from tensor names to files")
    shards: dict[str, dict[str, StoredTensor]] = {}
    tensors = {}
    for name, file_name in weight_map.items():
        # Only plain file names: an index must not reach outside its folder.
        if not isinstance(file_name, str) or Path(file_name).name != file_name:
            raise ModelLoadError(f"{index}: {name} must be in a file of the same folder, got {file_name!r}")
        path = index.parent / file_name
        if file_name not in shards:
            if not path.exists():
                raise ModelLoadError(f"{index} lists {file_name}, which is not in the folder")
            _, shards[file_name] = read_safetensors(path)
        if name not in shards[file_name]:
            raise ModelLoadError(f"{index} puts tensor {name} in {file_name}, which does not have it")
        tensors[name] = shards[file_name][name]
    return tensors
