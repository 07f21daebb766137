"""A checkpoint's folder -> DecoderSpec and weights. One file per model_type."""

from __future__ import annotations

import logging
import math
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from pocketlm.kernels.spec import DecoderSpec
from pocketlm.models import gpt2
from pocketlm.models.checkpoint_file import CheckpointFile, StoredTensor
from pocketlm.models.config_file import ConfigFile
from pocketlm.models.weight_map import Source, read_weights

log = logging.getLogger(__name__)


class ModelFamily(Protocol):
    """What each module of this folder that is named after a model_type offers."""

    DEFAULT_EOS_TOKEN_ID: int
    BUFFERS: tuple[str, ...]  # endings of tensor names that are no weights

    def read_spec(self, config: ConfigFile) -> DecoderSpec: ...
    def tensor_sources(self, config: ConfigFile, num_layers: int, names: Set[str]) -> dict[str, Source]: ...


FAMILIES: dict[str, ModelFamily] = {"gpt2": gpt2}


@dataclass(frozen=True)
class CheckpointHeader:
    """What config.json and the headers of the weight files say; no weight has been read."""

    folder: Path
    model_type: str
    spec: DecoderSpec
    file: CheckpointFile
    sources: dict[str, Source]  # by slot, see kernels/spec.py
    eos_token_ids: tuple[int, ...]

    def stored(self) -> dict[str, StoredTensor]:
        """What is stored for each slot; a ModelLoadError if something is missing."""
        return {slot: self.file.stored(source.name) for slot, source in self.sources.items()}

    @property
    def num_parameters(self) -> int:
        """A tensor that fills two slots, as tied embeddings do, counts once."""
        stored = {source.name: self.file.stored(source.name) for source in self.sources.values()}
        return sum(math.prod(tensor.shape) for tensor in stored.values())


@dataclass(frozen=True)
class Checkpoint:
    folder: Path
    model_type: str
    spec: DecoderSpec
    weights: dict[str, NDArray[Any]]  # by slot, see kernels/spec.py; on the files' memory maps
    eos_token_ids: tuple[int, ...]
    num_parameters: int


def read_header(folder: Path) -> CheckpointHeader:
    """Open a checkpoint in Hugging Face's layout, or raise a ModelLoadError that says what is wrong."""
    config = ConfigFile(folder / "config.json")
    model_type = config.text("model_type")
    if model_type not in FAMILIES:
        raise config.wrong("model_type", f"one of those supported ({', '.join(FAMILIES)})")
    family = FAMILIES[model_type]
    spec = family.read_spec(config)
    file = CheckpointFile(folder)
    return CheckpointHeader(
        folder=folder,
        model_type=model_type,
        spec=spec,
        file=file,
        sources=family.tensor_sources(config, spec.num_layers, file.names),
        eos_token_ids=_eos_token_ids(config, family.DEFAULT_EOS_TOKEN_ID, spec.vocab_size),
    )


def load_checkpoint(folder: Path) -> Checkpoint:
    """The weights of a checkpoint with what its header says, or a ModelLoadError."""
    return read_checkpoint(read_header(folder))


def read_checkpoint(header: CheckpointHeader) -> Checkpoint:
    """The weights too. A ModelLoadError if one is missing, or not of the shape that config.json calls for."""
    weights = read_weights(header.file, header.spec, header.sources)
    used = {source.name for source in header.sources.values()}
    buffers = FAMILIES[header.model_type].BUFFERS
    unused = sorted(name for name in header.file.names - used if not name.endswith(buffers))
    if unused:
        message = "%s has tensors that are not part of a %s model and are ignored: %s"
        names = ", ".join(unused[:3]) + (", ..." if unused[3:] else "")
        log.warning(message, header.folder, header.model_type, names)
    return Checkpoint(
        folder=header.folder,
        model_type=header.model_type,
        spec=header.spec,
        weights=weights,
        eos_token_ids=header.eos_token_ids,
        num_parameters=header.num_parameters,
    )


def _eos_token_ids(config: ConfigFile, default: int, vocab_size: int) -> tuple[int, ...]:
    """What generation_config.json says, else config.json, else the default.

    Ids outside the vocabulary are dropped: the default often is one, when a model has a tokenizer of its own.
    """
    token_ids: tuple[int, ...] = ()
    generation_config = config.path.with_name("generation_config.json")
    if generation_config.exists():
        token_ids = ConfigFile(generation_config).token_ids("eos_token_id")
    token_ids = token_ids or config.token_ids("eos_token_id")
    if "eos_token_id" not in config.fields:
        token_ids = token_ids or (default,)
    return tuple(token_id for token_id in token_ids if 0 <= token_id < vocab_size)
