"""The marks: what pocketlm is to reach, as ratios that one run finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from peers.limits import Limits
from peers.results import Results, Row
from peers.workload import CASES


@dataclass(frozen=True)
class Run:
    rows: list[Row]
    results: Results
    limits: Limits

    def share(self, row: Row, case: str) -> float | None:
        """Of what the machine can do at most; for our engine in process."""
        if not row.is_ours or row.is_served:
            return None
        return self.limits.share(row.variant, CASES[case], self.results.rounds(row, case))


@dataclass(frozen=True)
class Found:
    ratio: float | None
    between: str


@dataclass(frozen=True)
class Mark:
    what: str
    at_least: float
    aim: float
    find: Callable[[Run], Found]

    def verdict(self, ratio: float | None) -> str:
        if ratio is None:
            return "not measured"
        return "aim reached" if ratio >= self.aim else "reached" if ratio >= self.at_least else "missed"


def against(case: str, *, bits: int | None = None, engine: str | None = None) -> Callable[[Run], Found]:
    """Our best row against the best of the others, each the one with the best median."""

    def find(run: Run) -> Found:
        rows = [row for row in run.rows if bits in (None, row.bits)]
        ours = run.results.best([row for row in rows if row.is_ours], case)
        theirs = run.results.best(
            [row for row in rows if not row.is_ours and engine in (None, row.engine)], case
        )
        if ours is None or theirs is None:
            return Found(None, "")
        return Found(run.results.ratio((ours, case), (theirs, case)), f"{ours} / {theirs}")

    return find


def served(run: Run) -> Found:
    """Our server against our engine, in the number format in which the server is fastest."""
    server = run.results.best([row for row in run.rows if row.is_ours], "64 clients")
    if server is None:
        return Found(None, "")
    engine = Row(server.engine, server.variant, server.bits)
    return Found(run.results.ratio((server, "64 clients"), (engine, "64 streams")), f"{server} / {engine}")


def share_in_int8(case: str) -> Callable[[Run], Found]:
    row = Row("pocketlm", "int8", 8)
    return lambda run: Found(run.share(row, case), f"{row} / the machine")


MARKS = (
    Mark("1 stream, 8-bit, against the best 8-bit peer", 1.25, 1.5, against("1 stream", bits=8)),
    Mark("1 stream, 4-bit, against the best 4-bit peer", 1.2, 1.5, against("1 stream", bits=4)),
    Mark("16 streams, our best against the best peer", 1.2, 1.5, against("16 streams")),
    Mark("64 streams, our best against the best peer", 1.35, 1.7, against("64 streams")),
    Mark("prefill of 512-token prompts, our best against the best peer", 1.25, 1.6, against("prefill")),
    Mark("64 HTTP clients, against our engine in process", 0.85, 0.95, served),
    Mark("64 HTTP clients, against the best peer's server", 1.6, 2.0, against("64 clients")),
    Mark(
        "64 HTTP clients, against the exercise's server",
        60,
        100,
        against("64 clients", engine="transformers"),
    ),
    Mark("share of the limit, 1 stream, int8", 0.75, 0.85, share_in_int8("1 stream")),
    Mark("share of the limit, 64 streams, int8", 0.65, 0.75, share_in_int8("64 streams")),
)
