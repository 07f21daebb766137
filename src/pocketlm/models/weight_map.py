"""From a checkpoint's tensor names to the slots of a DecoderSpec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from pocketlm.kernels.spec import DecoderSpec
from pocketlm.models.checkpoint_file import CheckpointFile


@dataclass(frozen=True)
class Source:
    """Where the weight of a slot comes from."""

    name: str
    is_transposed: bool = False  # stored as [outputs, inputs]


def read_weights(
    file: CheckpointFile, spec: DecoderSpec, sources: Mapping[str, Source]
) -> dict[str, NDArray[Any]]:
    """The weights by slot, on the file's memory map: a transposed one is a view with other strides."""
    weights = {}
    for slot, source in sources.items():
        shape = spec.weight_shape(slot)
        if source.is_transposed:
            weights[slot] = file.tensor(source.name, shape[::-1]).T
        else:
            weights[slot] = file.tensor(source.name, shape)
    return weights
