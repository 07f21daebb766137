"""A time limit for what others do, that does not count what we ourselves are late."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

NUM_SLICES = 25


async def wait_patiently(call: Coroutine[Any, Any, Result], timeout_s: float) -> Result:
    """Like asyncio.wait_for, but in slices.

    Where the engine leaves the event loop little of the processor, an answer may lie there unread while
    a timer runs out. A delay of ours uses up one slice only; then there is a look at the answer.
    """
    task = asyncio.create_task(call)
    try:
        for _ in range(NUM_SLICES):
            done, _ = await asyncio.wait({task}, timeout=timeout_s / NUM_SLICES)
            if done:
                return task.result()
        raise asyncio.TimeoutError
    finally:
        if not task.done():
            task.add_done_callback(_take_notice)
            task.cancel()


def _take_notice(task: asyncio.Task[Any]) -> None:
    """Else asyncio complains of an error that nobody looked at."""
    if not task.cancelled():
        task.exception()
