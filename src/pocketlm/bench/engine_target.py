"""EngineTarget: the engine in this process, as a server would drive it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pocketlm.async_engine import AsyncEngine
from pocketlm.bench.asked import Asked, AskFailed
from pocketlm.errors import PocketLMError
from pocketlm.loading import LoadedModel
from pocketlm.sampling import SamplingParams

NO_LIMIT = 2**31  # on the queue: under too much load a request waits, and its time says so


class EngineTarget:
    def __init__(self, model: LoadedModel, engine: AsyncEngine) -> None:
        self.name = model.name
        self._engine = engine

    async def ask(self, prompt: str, num_tokens: int, asked: Asked) -> None:
        params = SamplingParams(max_tokens=num_tokens, temperature=0, ignore_eos=True)
        try:
            generation = await self._engine.admit(prompt, params)
            asked.num_prompt_tokens = len(generation.output.prompt_token_ids)
            async for piece in self._engine.generate(generation):
                if piece.token_ids:
                    asked.arrived_at.append(time.monotonic())
                    asked.num_tokens += len(piece.token_ids)
        except PocketLMError as error:
            raise AskFailed(error.code, str(error)) from error


@asynccontextmanager
async def engine_target(model: LoadedModel) -> AsyncIterator[EngineTarget]:
    """The model on an engine thread, for as long as the block runs."""
    engine = AsyncEngine(model, max_queue=NO_LIMIT)
    engine.start()
    try:
        yield EngineTarget(model, engine)
    finally:
        await engine.stop()
