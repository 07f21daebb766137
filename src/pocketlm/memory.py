"""What a model takes of the memory, known from its files before a weight is read."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from pocketlm import kernels
from pocketlm.accuracy import CHUNK
from pocketlm.kernels import int4
from pocketlm.kernels.inputs import BLOCK_SIZE
from pocketlm.kernels.spec import TABLES, DecoderSpec
from pocketlm.models import CheckpointHeader
from pocketlm.smoothing import SMOOTHED_DTYPES

FLOAT_BYTES = {"float32": 4, "bfloat16": 2}
PANEL_COLUMNS = 64  # the compiled core pads the columns of a matrix to a multiple of this


@dataclass(frozen=True)
class MemoryEstimate:
    """Upper bounds in bytes. The pages of a mapped file count only where each step reads them."""

    num_parameters: int
    weights_bytes: int  # for as long as the model is loaded
    peak_bytes: int  # while it loads
    kv_cache_bytes: int  # what it would take for keys and values
    least_kv_cache_bytes: int  # one context, or what is configured
    max_model_len: int

    @property
    def memory_bytes(self) -> int:
        """What the loaded model would take."""
        return self.weights_bytes + self.kv_cache_bytes

    @property
    def least_bytes(self) -> int:
        """The least in which the loaded model can run."""
        return self.weights_bytes + self.least_kv_cache_bytes

    @property
    def load_bytes(self) -> int:
        """The least in which it can be loaded and run."""
        return max(self.peak_bytes, self.least_bytes)


def weights_bytes(header: CheckpointHeader, dtype: str) -> int:
    """What the weights of a loaded model take in a number format."""
    return _kept_bytes(header) + _packed_bytes(header, dtype)


def peak_bytes(header: CheckpointHeader, dtypes: tuple[str, ...], num_probe_tokens: int) -> int:
    """What loading takes: the weights in the first format, and beside them each other one to compare it."""
    first, *others = dtypes
    sources = sum(t.array_bytes for slot, t in header.stored().items() if slot in TABLES or t.is_widened)
    total = sources + _packed_bytes(header, first)
    total += max((_packed_bytes(header, dtype) for dtype in others), default=0)
    if kernels.isa()[0] == "reference":
        # NumPy quantizes a matrix in several steps, each with an array of its own.
        total += max(24 * rows * columns for rows, columns in _packed_shapes(header.spec).values())
    if not set(dtypes).isdisjoint(SMOOTHED_DTYPES):
        # One matrix at a time in float64, or twice in float32; keys and values in float64.
        total += max(8 * rows * columns for rows, columns in _packed_shapes(header.spec).values())
        total += 2 * context_bytes(header.spec, "float32", num_probe_tokens)
    if "int4" in dtypes:
        total += max(int4.peak_bytes(*shape) for shape in _packed_shapes(header.spec).values())
        total += 8 * num_probe_tokens * sum(rows for rows, _ in _packed_shapes(header.spec).values())
    if others:
        total += 2 * context_bytes(header.spec, first, num_probe_tokens)
        total += 8 * 4 * CHUNK * header.spec.vocab_size  # logits, and what is computed from them
    return total


def context_bytes(spec: DecoderSpec, dtype: str, num_tokens: int) -> int:
    """The keys and values of one sequence."""
    return -(-num_tokens // BLOCK_SIZE) * kernels.kv_block_bytes(spec, dtype)


def return_freed_memory() -> None:
    """Give freed memory back to the system: glibc keeps what lies in gaps between what is in use."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none and needs none
        if trim is not None:
            trim(0)


def _kept_bytes(header: CheckpointHeader) -> int:
    """The arrays that a decoder refers to after packing: the tables, and in the reference all of them."""
    keeps_all = kernels.isa()[0] == "reference"
    return sum(
        tensor.array_bytes
        for slot, tensor in header.stored().items()
        if slot in TABLES or (keeps_all and tensor.is_widened)
    )


def _packed_bytes(header: CheckpointHeader, dtype: str) -> int:
    is_reference = kernels.isa()[0] == "reference"
    packed = _packed_in_numpy if is_reference else _packed_in_panels
    matrices = sum(packed(*shape, dtype) for shape in _packed_shapes(header.spec).values())
    return matrices if is_reference else matrices + _norm_bytes(header)


def _norm_bytes(header: CheckpointHeader) -> int:
    slots = (slot.rpartition(".")[0] for slot in header.sources)
    return 4 * header.spec.hidden_size * sum(slot.endswith("norm") for slot in slots)


def _packed_in_panels(rows: int, columns: int, dtype: str) -> int:
    """A matrix in the compiled core, with its bias, and its scales if it has them."""
    padded = -(-columns // PANEL_COLUMNS) * PANEL_COLUMNS
    if dtype in FLOAT_BYTES:
        return FLOAT_BYTES[dtype] * padded * rows + 4 * padded
    if dtype == "int4":
        num_groups = -(-rows // int4.GROUP_SIZE)
        return padded * num_groups * (int4.GROUP_SIZE // 2 + 1) + 8 * padded
    return padded * (-(-rows // 4) * 4) + 8 * padded


def _packed_in_numpy(rows: int, columns: int, dtype: str) -> int:
    """The same in the reference, which keeps 8-bit and 4-bit numbers as float64."""
    if dtype == "int4":
        num_groups = -(-rows // int4.GROUP_SIZE)
        return (8 * int4.GROUP_SIZE + 4) * num_groups * columns + 8 * columns
    return (4 if dtype in FLOAT_BYTES else 8) * rows * columns + 8 * columns


def _packed_shapes(spec: DecoderSpec) -> dict[str, tuple[int, int]]:
    return {name: shape for name, shape in spec.matrix_shapes().items() if name not in TABLES}
