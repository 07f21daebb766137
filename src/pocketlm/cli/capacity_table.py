"""The table of `pocketlm doctor` that says what this machine can do with each size of GPT-2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pocketlm.capacity import NUM_STREAMS, Capacity
from pocketlm.cli.output import print_table
from pocketlm.roofline import CONTEXT

Measured = dict[tuple[str, str], dict[int, float]]  # model and dtype -> streams -> tokens per second

HEADING = f"""
Tokens per second at best, by the memory bandwidth and the multiply-adds above, with {CONTEXT} tokens of
context in each stream; the weights in MiB, and how many streams of a whole context fit beside them.
"""


def print_capacities(capacities: Sequence[Capacity], measured: Measured) -> None:
    """What was measured stands in a row of its own, below what was predicted."""
    rows = [("", "", "MiB", *(f"{n} stream{'s' * (n > 1)}" for n in NUM_STREAMS), "fit")]
    for c in capacities:
        rows.append(
            (
                c.model.partition(":")[2],
                c.dtype,
                f"{c.weights_bytes / 2**20:,.0f}",
                *_shown(c.predicted_tokens_per_s),
                f"{c.num_streams_that_fit:,}" if c.num_streams_that_fit else "too large",
            )
        )
        if (c.model, c.dtype) in measured:
            rows.append(("", "measured", "", *_shown(measured[c.model, c.dtype]), ""))
    print(HEADING)
    print_table(rows)
    print()


def as_json(c: Capacity, measured: Measured) -> dict[str, Any]:
    found = measured.get((c.model, c.dtype))
    return {
        **asdict(c),
        "predicted_tokens_per_s": _rounded(c.predicted_tokens_per_s),
        "measured_tokens_per_s": None if found is None else _rounded(found),
    }


def _shown(speeds: dict[int, float]) -> list[str]:
    return [f"{speeds[n]:,.1f}" if speeds[n] < 100 else f"{speeds[n]:,.0f}" for n in NUM_STREAMS]


def _rounded(speeds: dict[int, float]) -> dict[int, float]:
    return {n: round(speed, 2) for n, speed in speeds.items()}
