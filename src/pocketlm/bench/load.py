"""Load: requests sent to a target, in one of two ways.

closed loop   a number of clients, each of which asks again when it has its answer
open loop     requests arrive at a rate, at random moments (a Poisson process), whether or not the answers
              keep up; their times count from when they were due, so that a queue anywhere shows

Both end after a number of requests or a time, whichever comes first.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from pocketlm.bench.asked import Asked, AskFailed
from pocketlm.bench.target import Target

WORDS = (
    "time year people way day man thing woman life child world school state family student group country "
    "problem hand part place case week company system program question work government number night point "
    "home water room mother area money story fact month lot right study book eye job word business issue"
).split()


@dataclass(frozen=True)
class Level:
    """How hard to load: so many clients, or so many requests a second."""

    num_clients: int | None
    rate: float | None
    num_requests: int
    max_seconds: float

    def __str__(self) -> str:
        if self.rate is not None:
            return f"{self.rate:g} requests/s"
        return "1 client" if self.num_clients == 1 else f"{self.num_clients} clients"


@dataclass
class Run:
    """What one level came to."""

    level: Level
    started_at: float
    ended_at: float = 0.0
    asked: list[Asked] = field(default_factory=list)


class Load:
    """Asks a target with prompts of random words, so that no two begin alike."""

    def __init__(self, target: Target, *, num_words: int, num_tokens: int, seed: int) -> None:
        self._target = target
        self._num_words = num_words
        self._num_tokens = num_tokens
        self._random = random.Random(seed)

    def prompt(self) -> str:
        return " ".join(self._random.choices(WORDS, k=self._num_words))

    async def run(self, level: Level, on_end: Callable[[], None] = lambda: None) -> Run:
        """Load the target; `on_end` is called after each request. What is under way at the end is dropped."""
        run = Run(level, started_at=time.monotonic())
        if level.rate is None:
            assert level.num_clients is not None
            numbers = iter(range(level.num_requests))  # shared: whoever is free takes the next
            work = [self._client(run, numbers, on_end) for _ in range(level.num_clients)]
        else:
            due_at, work = run.started_at, []
            for _ in range(level.num_requests):
                work.append(self._arrival(run, due_at, on_end))
                due_at += self._random.expovariate(level.rate)
        await _finish(work, level.max_seconds)
        run.ended_at = time.monotonic()
        return run

    async def _client(self, run: Run, numbers: Iterator[int], on_end: Callable[[], None]) -> None:
        for _ in numbers:
            await self._ask(run, time.monotonic(), on_end)

    async def _arrival(self, run: Run, due_at: float, on_end: Callable[[], None]) -> None:
        await asyncio.sleep(max(0.0, due_at - time.monotonic()))
        await self._ask(run, due_at, on_end)

    async def _ask(self, run: Run, due_at: float, on_end: Callable[[], None]) -> None:
        asked = Asked(due_at)
        run.asked.append(asked)
        try:
            await self._target.ask(self.prompt(), self._num_tokens, asked)
        except AskFailed as error:
            asked.error = error
        asked.ended_at = time.monotonic()
        on_end()


async def _finish(work: list[Coroutine[Any, Any, None]], max_seconds: float) -> None:
    """Do all of it side by side, for at most so long. An error that is nobody's answer is raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        done, _ = await asyncio.wait(tasks, timeout=max_seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
