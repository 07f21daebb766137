"""Load sends as much as it was told, no more, and never for longer."""

from __future__ import annotations

import asyncio
import time

import pytest

from pocketlm.bench.asked import Asked, AskFailed
from pocketlm.bench.load import Level, Load, Run


class FakeTarget:
    """Answers after a pause; remembers what it was asked."""

    name = "fake"

    def __init__(self, pause_s: float = 0.0, error: Exception | None = None) -> None:
        self.prompts: list[str] = []
        self.num_now = self.most_at_once = 0
        self._pause_s, self._error = pause_s, error

    async def ask(self, prompt: str, num_tokens: int, asked: Asked) -> None:
        self.prompts.append(prompt)
        self.num_now += 1
        self.most_at_once = max(self.most_at_once, self.num_now)
        try:
            await asyncio.sleep(self._pause_s)
            if self._error is not None:
                raise self._error
            asked.arrived_at.append(time.monotonic())
            asked.num_tokens = num_tokens
        finally:
            self.num_now -= 1


def load(target: FakeTarget, level: Level, seed: int = 0) -> Run:
    return asyncio.run(Load(target, num_words=8, num_tokens=3, seed=seed).run(level))


def test_a_closed_loop_keeps_so_many_clients_busy() -> None:
    target = FakeTarget(pause_s=0.002)
    run = load(target, Level(num_clients=3, rate=None, num_requests=10, max_seconds=60))
    assert len(run.asked) == 10 and all(asked.is_complete for asked in run.asked)
    assert target.most_at_once == 3
    assert len(set(target.prompts)) == 10


def test_an_open_loop_does_not_wait_for_answers_and_counts_from_when_they_were_due() -> None:
    target = FakeTarget(pause_s=0.5)
    run = load(target, Level(num_clients=None, rate=500.0, num_requests=40, max_seconds=60))
    assert target.most_at_once > 10  # 40 arrive in about 80 ms
    assert all(asked.is_complete for asked in run.asked)
    due_at = [asked.due_at for asked in run.asked]
    assert due_at == sorted(due_at) and due_at[0] == run.started_at
    assert all(asked.e2e_s is not None and asked.e2e_s >= 0.49 for asked in run.asked)


def test_arrivals_are_random_but_repeat_with_their_seed() -> None:
    def gaps(seed: int) -> list[float]:
        run = load(FakeTarget(), Level(num_clients=None, rate=2000.0, num_requests=20, max_seconds=60), seed)
        return [round(asked.due_at - run.started_at, 6) for asked in run.asked]

    assert gaps(1) == pytest.approx(gaps(1), abs=1e-5)
    assert gaps(1) != pytest.approx(gaps(2), abs=1e-5)


def test_what_is_under_way_when_the_time_is_over_is_dropped() -> None:
    target = FakeTarget(pause_s=60)
    run = load(target, Level(num_clients=2, rate=None, num_requests=100, max_seconds=0.05))
    assert len(run.asked) == 2 and not any(asked.is_complete for asked in run.asked)
    assert target.num_now == 0


def test_a_failure_is_one_requests_result() -> None:
    target = FakeTarget(error=AskFailed("503", "not now"))
    run = load(target, Level(num_clients=2, rate=None, num_requests=5, max_seconds=60))
    assert [asked.error.kind for asked in run.asked if asked.error] == ["503"] * 5


def test_a_mistake_of_ours_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        load(FakeTarget(error=ZeroDivisionError()), Level(2, None, 5, 60))
