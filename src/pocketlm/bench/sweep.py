"""Sweep: one target through all levels of a plan."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from pocketlm.bench.asked import Asked, AskFailed
from pocketlm.bench.figures import Figures, figures
from pocketlm.bench.load import Level, Load
from pocketlm.bench.plan import Plan
from pocketlm.bench.target import Target
from pocketlm.errors import PocketLMError

Watch = Callable[[Level], Callable[[], None]]  # called as a level begins; what it returns, after each request


async def sweep(target: Target, plan: Plan, watch: Watch) -> list[Figures]:
    """The figures of each level, in order. PocketLMError if the target does not get warm."""
    load = Load(target, num_words=plan.num_words, num_tokens=plan.num_tokens, seed=plan.seed)
    try:
        await asyncio.gather(
            *(
                target.ask(load.prompt(), plan.num_tokens, Asked(due_at=time.monotonic()))
                for _ in range(plan.num_warmup)
            )
        )
    except AskFailed as error:
        raise PocketLMError(f"{target.name} does not answer the warm-up requests: {error}") from None
    results = []
    for level in plan.levels:
        run = await load.run(level, watch(level))
        results.append(figures(target.name, run, plan.slo))
    return results
