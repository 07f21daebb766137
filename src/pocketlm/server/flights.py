"""Flights: a generation under way, and every request that waits for it.

Requests that ask for exactly the same share one flight, so the engine does the work once. A flight
ends early only when nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from pocketlm.async_engine import AsyncEngine, Job
from pocketlm.errors import EngineError, IdempotencyConflict, NonFiniteLogits, PocketLMError
from pocketlm.generation import Generation, Piece
from pocketlm.outputs import FinishReason, RequestOutput, Timing
from pocketlm.server.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Ended:
    """The last that a reader hears of a flight."""

    error: PocketLMError | None


Reader = Callable[[Piece | Ended], None]
Store = Callable[[RequestOutput], Awaitable[None]]
OnFailure = Callable[[str], None]  # hears the name of a model whose engine failed a request


class Flight:
    """One generation under way; listens to the engine, and tells its readers."""

    def __init__(
        self,
        engine: AsyncEngine,
        generation: Generation,
        *,
        owner: str,
        metrics: Metrics,
        on_failure: OnFailure,
        store: Store | None,
    ) -> None:
        self.output = generation.output
        self.share: tuple[str, str] | None = None  # under which key, for which request; set by Flights
        self._engine, self._metrics, self._store = engine, metrics, store
        self._on_failure = on_failure
        self._model = engine.model.name
        self._readers: list[Reader] = []
        self._pieces: list[Piece] = []  # so far, for readers who come later
        self._ended: Ended | None = None
        self._last_at: list[float | None] = [None] * len(generation.output.outputs)
        self._storing: asyncio.Task[None] | None = None
        self._on_close: Callable[[], None] = lambda: None
        job = engine.submit(generation, self, owner=owner)
        self._job: Job | None = job  # until it is over: each knows the other, and nobody would free them
        self._submitted_at = job.submitted_at
        self.timing: Timing = job.timing

    def join(self, reader: Reader) -> None:
        """Tell `reader` everything so far, and from now on."""
        for piece in self._pieces:
            reader(piece)
        if self._ended is None:
            self._readers.append(reader)
        else:
            reader(self._ended)

    def leave(self, reader: Reader, reason: FinishReason) -> None:
        """`reader` wants to hear no more; if it was the last one, the generation is aborted."""
        if reader in self._readers:
            self._readers.remove(reader)
            if not self._readers and self._job is not None:
                self._engine.cancel(self._job)
                self._job = None
                self._count([reason])
                self._close(Ended(None))

    def on_close(self, callback: Callable[[], None]) -> None:
        self._on_close = callback

    def on_piece(self, piece: Piece, at: float) -> None:
        if piece.token_ids:
            self._measure(piece, at)
        self._pieces.append(piece)
        for reader in self._readers:
            reader(piece)

    def on_end(self, error: PocketLMError | None) -> None:
        self._job = None
        if isinstance(error, NonFiniteLogits):
            self._metrics.corrupted(self._model)
        if isinstance(error, EngineError):
            self._on_failure(self._model)
        self._count(
            [FinishReason.ERROR]
            if error
            else [c.finish_reason for c in self.output.outputs if c.finish_reason]
        )
        if error is None and self._store is not None:
            # Whoever has read the end finds the answer in the cache.
            self._storing = asyncio.create_task(self._store_and_close(self._store))
        else:
            self._close(Ended(error))

    async def _store_and_close(self, store: Store) -> None:
        try:
            await store(self.output)
        finally:
            self._close(Ended(None))

    def _close(self, ended: Ended) -> None:
        self._on_close()
        self._ended = ended
        readers, self._readers = self._readers, []
        for reader in readers:
            reader(ended)

    def _measure(self, piece: Piece, at: float) -> None:
        last_at = self._last_at[piece.index]
        self._metrics.tokens(self._model, len(piece.token_ids))
        if last_at is not None:
            self._metrics.inter_token(self._model, at - last_at)
        elif all(other is None for other in self._last_at):
            self._metrics.first_token(self._model, at - self._submitted_at)
            self._metrics.prompt_tokens(self._model, len(self.output.prompt_token_ids))
        self._last_at[piece.index] = at

    def _count(self, reasons: list[FinishReason]) -> None:
        self._metrics.finished(
            self._model,
            reasons,
            self.timing,
            time.monotonic() - self._submitted_at,
            len(self.output.prompt_token_ids),
            sum(len(completion.token_ids) for completion in self.output.outputs),
        )


class Flights:
    """The flights that others may join."""

    def __init__(self, metrics: Metrics, *, on_failure: OnFailure) -> None:
        self._metrics, self._on_failure = metrics, on_failure
        self._shared: dict[str, Flight] = {}

    def start(
        self,
        engine: AsyncEngine,
        generation: Generation,
        *,
        owner: str,
        share: tuple[str, str] | None,
        store: Store | None,
    ) -> Flight:
        """The flight of a request: one under way, if `share` = (key, request) has one, or a new one.

        IdempotencyConflict if the key has one of another request; what AsyncEngine.submit raises.
        """
        flight = self._shared.get(share[0]) if share else None
        if flight is None:
            flight = Flight(
                engine,
                generation,
                owner=owner,
                metrics=self._metrics,
                on_failure=self._on_failure,
                store=store,
            )
            if share is not None:
                flight.share = share
                self._shared[share[0]] = flight
                flight.on_close(lambda: self._drop(share[0]))
        elif flight.share != share:
            raise IdempotencyConflict(
                "this Idempotency-Key was used for another request, which is under way; "
                "use a new key for each request"
            )
        return flight

    def _drop(self, key: str) -> None:
        del self._shared[key]
