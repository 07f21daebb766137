"""What a run found, as text: Markdown for people, and a value for one line of JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peers.marks import MARKS, Run
from peers.results import Row
from peers.workload import CASES

ABOUT = """\
GPT-2 124M with random weights, 2 threads, greedy; in each stream a prompt of 32 tokens and 64 new tokens
(prefill: 4 prompts of 512 tokens, one new token each). No two prompts begin alike. Figures are new tokens
per second (prefill: tokens of prompts), the time for the prompts included: medians of the rounds of one
run, in which all took turns. The machine is shared: compare figures with each other, not with those of
another day. In brackets is the share of the least time that the measured limits allow (each step reads
every weight once and does one multiply-add for each token and weight). A ratio of two is the median of
their ratios in each round.
"""


def markdown(run: Run, facts: Mapping[str, str], notes: Mapping[Row, str]) -> str:
    parts = [
        "# pocketlm and others",
        ABOUT,
        "## This run",
        *(f"- {name}: {fact}" for name, fact in facts.items()),
    ]
    parts += ["", "## Marks", "", table(marks(run)), "", "## Tokens per second", "", table(speeds(run)), ""]
    parts += ["## Settings, and what else there is to say", ""]
    parts += [f"- {row}: {note}" for row, note in notes.items() if note]
    return "\n".join(parts) + "\n"


def marks(run: Run) -> list[list[str]]:
    lines = [["case", "at least", "aim", "measured", "", "between"]]
    for mark in MARKS:
        found = mark.find(run)
        measured = "" if found.ratio is None else f"{found.ratio:.2f}"
        verdict = mark.verdict(found.ratio)
        lines.append([mark.what, f"{mark.at_least:g}", f"{mark.aim:g}", measured, verdict, found.between])
    return lines


def speeds(run: Run) -> list[list[str]]:
    lines = [["", *CASES, ""]]
    for row in run.rows:
        line = [str(row)]
        for case in CASES:
            speed, share = run.results.tokens_per_s(row, case), run.share(row, case)
            line.append(
                "" if speed is None else f"{speed:.0f}" + ("" if share is None else f" ({share:.0%})")
            )
        lines.append([*line, run.results.reasons.get(row, "")])
    return lines


def table(lines: Sequence[Sequence[str]]) -> str:
    """In Markdown, and aligned for a terminal."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def value(run: Run, facts: Mapping[str, str]) -> dict[str, Any]:
    found = {mark.what: mark.find(run).ratio for mark in MARKS}
    return {
        **facts,
        "tokens_per_s": {
            str(row): {case: _short(run.results.tokens_per_s(row, case)) for case in CASES}
            for row in run.rows
        },
        "marks": {what: _short(ratio) for what, ratio in found.items()},
        "reasons": {str(row): reason for row, reason in run.results.reasons.items()},
    }


def _short(number: float | None) -> float | None:
    return None if number is None else float(f"{number:.4g}")
