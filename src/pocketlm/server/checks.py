"""Checks: the known-answer checks of the loaded models, repeated in the background while they serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from pocketlm.registry import Registry

CHECK_EVERY_S = 30.0


class Checks:
    """Started by who asks whether the server is ready; the result is in the model's entry."""

    def __init__(self, registry: Registry, clock: Callable[[], float] = time.monotonic) -> None:
        self._registry = registry
        self._clock = clock
        self._due_at: dict[str, float] = {}  # by model
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def doubt(self, name: str) -> None:
        """A request failed in this model's engine: look at the next opportunity."""
        self._due_at.pop(name, None)

    def start_due(self) -> None:
        """Check each loaded model that was not checked lately. Nobody waits for it."""
        for entry in self._registry.entries():
            name = entry.name
            if entry.engine is None or name in self._tasks or self._clock() < self._due_at.get(name, 0.0):
                continue
            self._due_at[name] = self._clock() + CHECK_EVERY_S
            self._tasks[name] = asyncio.create_task(self._check(name))

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _check(self, name: str) -> None:
        try:
            await self._registry.check(name)
        finally:
            del self._tasks[name]
