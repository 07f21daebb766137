"""What the machine can do at most, and what share of it a figure is."""

from __future__ import annotations

import json
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from peers.variant import NUM_THREADS
from peers.workload import Case

# Of GPT-2 124M: the weights that every token is multiplied with, and those that every new token is.
LAYER_WEIGHTS = 12 * 12 * 768**2
HEAD_WEIGHTS = 50257 * 768
BYTES = {"float32": 4.0, "bfloat16": 2.0, "int8": 1.0, "int4": 0.5}  # of a weight, without its scale
UNITS = {  # that multiply it; the fastest counts
    "float32": ["float32"],
    "bfloat16": ["float32", "bfloat16"],
    "int8": ["int8"],
    "int4": ["int8"],
}
MIB = {dtype: str(int(size * (LAYER_WEIGHTS + HEAD_WEIGHTS)) >> 20) for dtype, size in BYTES.items()}


@dataclass
class Limits:
    """Measured in each round, like the engines."""

    bytes_per_s: dict[str, dict[int, float]] = field(default_factory=dict)  # MiB -> round -> speed
    multiply_adds_per_s: dict[str, dict[int, float]] = field(default_factory=dict)  # unit -> round -> speed

    def measure(self, program: Path, round_number: int) -> None:
        command = [program, str(NUM_THREADS), *MIB.values()]
        measured = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
        for kind, speeds in measured.items():
            for name, speed in speeds.items():
                getattr(self, kind).setdefault(name, {})[round_number] = speed

    def share(self, dtype: str, case: Case, seconds: dict[int, float]) -> float | None:
        """The least seconds that the case can take, of those that it took."""
        reading = self.bytes_per_s.get(MIB[dtype], {})
        units = [self.multiply_adds_per_s.get(unit, {}) for unit in UNITS[dtype]]
        shares = [
            least_s(case, BYTES[dtype], reading[i], max(speeds)) / seconds[i]
            for i in seconds.keys() & reading.keys()
            if (speeds := [unit[i] for unit in units if i in unit])
        ]
        return statistics.median(shares) if shares else None


def least_s(case: Case, weight_bytes: float, bytes_per_s: float, multiply_adds_per_s: float) -> float:
    """A step reads each weight once and multiplies each token with it; attention is left out."""

    def step_s(num_tokens: int) -> float:
        reading_s = (LAYER_WEIGHTS + HEAD_WEIGHTS) * weight_bytes / bytes_per_s
        multiply_adds = num_tokens * LAYER_WEIGHTS + case.num_streams * HEAD_WEIGHTS
        return max(reading_s, multiply_adds / multiply_adds_per_s)

    prefill_s = step_s(case.num_streams * case.num_prompt_tokens)
    return prefill_s + (case.num_new_tokens - 1) * step_s(case.num_streams)


def compile_program(folder: Path) -> Path:
    source, program = Path(__file__).with_name("limits.cpp"), folder / "limits"
    flags = ["-std=c++20", "-O3", "-march=native", "-pthread"]
    subprocess.run(["g++", *flags, source, "-o", program], check=True)
    return program
