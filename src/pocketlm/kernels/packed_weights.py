"""Weights as the compiled core takes them; spec.py has their names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

# Of the arrays' layout and how weights become them, of what dtype=auto takes, and of what a decoder makes of
# them (known answers lie beside them). Raised with every change of these: what lies packed on a disk under
# another number is packed again.
PACKING_VERSION = 6


@dataclass(frozen=True)
class PackedWeights:
    """A decoder views the arrays and never writes to them; they may lie on a file."""

    dtype: str
    arrays: Mapping[str, NDArray[Any]]

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())
