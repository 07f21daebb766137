"""A checkpoint's folder -> DecoderSpec and weights. One file per model_type."""

from __future__ import annotations

import logging
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from pocketlm.kernels.spec import DecoderSpec
from pocketlm.models import gpt2
from pocketlm.models.checkpoint_file import CheckpointFile
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
class Checkpoint:
    folder: Path
    model_type: str
    spec: DecoderSpec
    weights: dict[str, NDArray[Any]]  # by slot, see kernels/spec.py; on the files' memory maps
    eos_token_ids: tuple[int, ...]
    num_parameters: int


def load_checkpoint(folder: Path) -> Checkpoint:
    """Open a checkpoint in Hugging Face's layout, or raise a ModelLoadError that says what is wrong."""
    config = ConfigFile(folder / "config.json")
    model_type = config.text("model_type")
    if model_type not in FAMILIES:
        raise config.wrong("model_type", f"one of those supported ({', '.join(FAMILIES)})")
    family = FAMILIES[model_type]
    spec = family.read_spec(config)
    file = CheckpointFile(folder)
    sources = family.tensor_sources(config, spec.num_layers, file.names)
    weights = read_weights(file, spec, sources)
    used = {source.name: weights[slot].size for slot, source in sources.items()}

    unused = sorted(name for name in file.names - used.keys() if not name.endswith(family.BUFFERS))
    if unused:
        message = "%s has tensors that are not part of a %s model and are ignored: %s"
        log.warning(message, folder, model_type, ", ".join(unused[:3]) + (", ..." if unused[3:] else ""))
    return Checkpoint(
        folder=folder,
        model_type=model_type,
        spec=spec,
        weights=weights,
        eos_token_ids=_eos_token_ids(config, family.DEFAULT_EOS_TOKEN_ID, spec.vocab_size),
        num_parameters=sum(used.values()),
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
