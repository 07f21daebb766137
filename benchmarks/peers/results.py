"""Results: seconds of each row and case in each round, and what follows from them."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from peers.workload import CASES


@dataclass(frozen=True)
class Row:
    """A line of the table: an engine in one of its variants, in process or behind its server."""

    engine: str
    variant: str
    bits: int
    is_served: bool = False

    @property
    def is_ours(self) -> bool:
        return self.engine == "pocketlm"

    def __str__(self) -> str:
        return f"{self.engine} {self.variant}" + " (HTTP)" * self.is_served


class Results:
    def __init__(self) -> None:
        self._seconds: dict[tuple[Row, str], dict[int, float]] = defaultdict(dict)
        self.reasons: dict[Row, str] = {}  # why a row has no figures, or not all

    def add(self, row: Row, case: str, round_number: int, seconds: float) -> None:
        self._seconds[row, case][round_number] = seconds

    def tokens_per_s(self, row: Row, case: str) -> float | None:
        """The median over the rounds."""
        seconds = self._seconds.get((row, case))
        return CASES[case].num_tokens / statistics.median(seconds.values()) if seconds else None

    def rounds(self, row: Row, case: str) -> dict[int, float]:
        return self._seconds.get((row, case), {})

    def best(self, rows: Iterable[Row], case: str) -> Row | None:
        speeds = {row: self.tokens_per_s(row, case) for row in rows}
        measured = {row: speed for row, speed in speeds.items() if speed is not None}
        return max(measured, key=measured.__getitem__, default=None)

    def ratio(self, one: tuple[Row, str], other: tuple[Row, str]) -> float | None:
        """How many times as fast one is as the other: the median of the rounds that both were in."""
        ones, others = self.rounds(*one), self.rounds(*other)
        per_token = CASES[one[1]].num_tokens / CASES[other[1]].num_tokens
        ratios = [per_token * others[i] / ones[i] for i in ones.keys() & others.keys()]
        return statistics.median(ratios) if ratios else None
