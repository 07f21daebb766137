"""Figures are arithmetic on times: checked with times that a person can add up."""

from __future__ import annotations

import pytest

from pocketlm.bench.asked import Asked, AskFailed
from pocketlm.bench.figures import SLO, figures
from pocketlm.bench.load import Level, Run

LEVEL = Level(num_clients=2, rate=None, num_requests=4, max_seconds=60)


def answered(due_at: float, ttft_s: float, itl_s: float, num_tokens: int) -> Asked:
    arrived_at = [due_at + ttft_s + i * itl_s for i in range(num_tokens)]
    return Asked(due_at, arrived_at, num_tokens, num_prompt_tokens=10, ended_at=arrived_at[-1])


def test_each_figure_of_a_run() -> None:
    run = Run(LEVEL, started_at=100.0, ended_at=104.0)
    run.asked = [answered(100, 0.1, 0.02, 11), answered(100, 0.3, 0.02, 11), answered(101, 0.2, 0.05, 11)]
    run.asked.append(Asked(102, [102.5], num_tokens=1))  # under way when the time was over
    run.asked.append(Asked(102, ended_at=102.1, error=AskFailed("429", "too many")))
    found = figures("m", run, SLO(ttft_ms=250, itl_ms=30))

    assert (found.requests, found.complete, found.unfinished, found.errors) == (5, 3, 1, {"429": 1})
    assert found.tokens == 34 and found.tokens_per_s == 8.5 and found.requests_per_s == 0.75
    assert found.ttft_ms is not None and found.e2e_ms is not None and found.itl_ms is not None
    assert found.ttft_ms["p50"] == pytest.approx(200)
    assert found.e2e_ms["p50"] == pytest.approx(500)  # 300, 500 and 700
    assert found.itl_ms["p50"] == pytest.approx(20) and found.itl_ms["p99"] == pytest.approx(50)
    # The second is late, the third slow, the fourth and fifth have no answer.
    assert found.goodput == 0.25 and found.good_percent == 20.0


def test_without_a_target_there_is_no_goodput() -> None:
    run = Run(LEVEL, started_at=0.0, ended_at=1.0, asked=[answered(0, 0.1, 0.1, 3)])
    assert figures("m", run, None).goodput is None
    assert figures("m", run, SLO(itl_ms=99)).goodput == 0
    assert figures("m", run, SLO(ttft_ms=101)).goodput == 1


def test_nothing_answered_is_no_percentile() -> None:
    run = Run(LEVEL, started_at=0.0, ended_at=2.0, asked=[Asked(0)])
    found = figures("m", run, None)
    assert found.ttft_ms is found.itl_ms is found.e2e_ms is found.prompt_tokens is None
    assert found.tokens_per_s == 0


def test_many_tokens_in_one_piece_are_as_many_intervals() -> None:
    asked = Asked(0.0, arrived_at=[1.0, 2.0], num_tokens=11, ended_at=2.0)
    assert asked.mean_itl_s == pytest.approx(0.1) and asked.gaps_s == [1.0]
