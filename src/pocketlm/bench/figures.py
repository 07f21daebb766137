"""Figures: what a run came to, in numbers.

tokens/s               all tokens that arrived, over the whole time
requests/s             complete answers, over the whole time
ttft                   time to first token
itl                    inter-token latency: from one piece of an answer to the next
e2e                    end to end: until the answer was whole
goodput                requests/s that met the target: their ttft, and the mean of their own itl

Percentiles are over the complete answers: where the load was too much, and many are unfinished, they
are those of the lucky ones.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pocketlm.bench.asked import Asked
from pocketlm.bench.load import Run

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class SLO:
    """A target for the time of each request, in milliseconds; None is no target."""

    ttft_ms: float | None = None
    itl_ms: float | None = None

    def is_met_by(self, asked: Asked) -> bool:
        return _within(asked.ttft_s, self.ttft_ms) and _within(asked.mean_itl_s, self.itl_ms)


@dataclass(frozen=True)
class Figures:
    """One level of one model. Times are in milliseconds; percentiles in the order of PERCENTILES."""

    model: str
    clients: int | None
    rate: float | None
    seconds: float
    requests: int  # sent
    complete: int
    unfinished: int  # when the time was over
    errors: dict[str, int]  # kind -> how many
    prompt_tokens: float | None  # mean of the complete ones
    tokens: int
    tokens_per_s: float
    requests_per_s: float
    ttft_ms: dict[str, float] | None
    itl_ms: dict[str, float] | None
    e2e_ms: dict[str, float] | None
    goodput: float | None  # requests/s; None without a target
    good_percent: float | None  # of the requests sent


def figures(model: str, run: Run, slo: SLO | None) -> Figures:
    seconds = run.ended_at - run.started_at
    complete = [asked for asked in run.asked if asked.is_complete]
    num_tokens = sum(asked.num_tokens for asked in run.asked)
    num_good = None if slo is None else sum(slo.is_met_by(asked) for asked in complete)
    prompt_tokens = [a.num_prompt_tokens for a in complete if a.num_prompt_tokens is not None]
    return Figures(
        model=model,
        clients=run.level.num_clients,
        rate=run.level.rate,
        seconds=round(seconds, 6),
        requests=len(run.asked),
        complete=len(complete),
        unfinished=sum(asked.ended_at is None for asked in run.asked),
        errors=dict(Counter(asked.error.kind for asked in run.asked if asked.error)),
        prompt_tokens=round(statistics.mean(prompt_tokens), 1) if prompt_tokens else None,
        tokens=num_tokens,
        tokens_per_s=round(num_tokens / seconds, 2),
        requests_per_s=round(len(complete) / seconds, 3),
        ttft_ms=_percentiles(a.ttft_s for a in complete),
        itl_ms=_percentiles(gap for a in complete for gap in a.gaps_s),
        e2e_ms=_percentiles(a.e2e_s for a in complete),
        goodput=None if num_good is None else round(num_good / seconds, 3),
        good_percent=None if num_good is None else round(100 * num_good / max(1, len(run.asked)), 1),
    )


def _percentiles(seconds: Iterable[float | None]) -> dict[str, float] | None:
    values = [1000 * value for value in seconds if value is not None]
    if not values:
        return None
    found = np.percentile(values, PERCENTILES)
    return {f"p{p}": round(float(value), 3) for p, value in zip(PERCENTILES, found, strict=True)}


def _within(seconds: float | None, most_ms: float | None) -> bool:
    return most_ms is None or seconds is None or 1000 * seconds <= most_ms
