"""AsyncEngine: the engine on a thread of its own, for one event loop.

    event loop                                 engine thread
    generate -- add, abort --> inbox  -------> takes the inbox, steps
    each request's queue <-- one hand-over <-- everything the step did

The engine thread only schedules and computes; tokenizing and detokenizing happen on this side.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from functools import partial

from pocketlm.errors import EngineDead
from pocketlm.generation import Generation, Piece, Prompt, admit
from pocketlm.loading import LoadedModel
from pocketlm.outputs import StepOutput
from pocketlm.sampling import SamplingParams

log = logging.getLogger(__name__)

LONG_PROMPT = 2048  # characters; a prompt this long is tokenized in a worker thread


@dataclass(eq=False)
class _Request:
    generation: Generation
    # (index of the sequence, what a step did for it), or None when the engine stopped
    queue: asyncio.Queue[tuple[int, StepOutput] | None] = field(default_factory=asyncio.Queue)
    seq_ids: list[int] = field(default_factory=list)  # set and read by the engine thread alone


class AsyncEngine:
    """Many requests at once over one engine. `start` is called in the event loop that serves them all."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.failure: str | None = None  # why nothing more can run
        self._engine = model.engine
        self._requests: set[_Request] = set()  # those under way; of the event loop
        self._thread = threading.Thread(target=self._run, name="pocketlm-engine", daemon=True)

        # Shared by both threads, under the lock of `_wake`.
        self._wake = threading.Condition()
        self._inbox: list[Callable[[], None]] = []
        self._is_stopping = False

        # Of the engine thread: where the outputs of a sequence go.
        self._routes: dict[int, tuple[_Request, int]] = {}

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread; requests still under way fail with EngineDead."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)
        self._end("the engine was stopped")

    async def admit(self, prompt: Prompt, params: SamplingParams) -> Generation:
        """Tokenize and check a request, before anything is queued. InvalidRequest, EngineDead."""
        self._check_alive()
        if len(prompt) >= LONG_PROMPT:
            return await asyncio.to_thread(admit, self.model.tokenizer, self._engine, prompt, params)
        return admit(self.model.tokenizer, self._engine, prompt, params)

    async def generate(self, generation: Generation) -> AsyncGenerator[Piece, None]:
        """Run an admitted request; `generation.output` is the answer so far.

        However the loop over the pieces ends, the engine's work for the request ends with it.
        """
        self._check_alive()
        request = _Request(generation)
        self._requests.add(request)
        self._send(partial(self._add, request))
        try:
            while not generation.is_finished:
                arrived = await request.queue.get()
                if arrived is None:
                    raise EngineDead(str(self.failure))
                index, step = arrived
                piece = generation.push(index, step)
                if piece is not None:
                    if piece.finish_reason is not None and step.finish_reason is None:  # a stop string
                        self._send(partial(self._abort, step.seq_id))
                    yield piece
        finally:
            self._requests.discard(request)
            if not generation.is_finished:
                self._send(partial(self._abort_all, request))

    def _check_alive(self) -> None:
        if self.failure is not None:
            raise EngineDead(self.failure)

    def _send(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(command)
            self._wake.notify()

    def _deliver(self, arrivals: list[tuple[_Request, int, StepOutput]]) -> None:
        for request, index, step in arrivals:
            request.queue.put_nowait((index, step))

    def _end(self, failure: str) -> None:
        """Nothing more can run: let everyone who waits know."""
        self.failure = self.failure or failure
        for request in self._requests:
            request.queue.put_nowait(None)

    # The engine thread runs what follows.

    def _run(self) -> None:
        try:
            while self._take_inbox():
                arrivals = []
                for step in self._engine.step():
                    request, index = self._routes[step.seq_id]
                    arrivals.append((request, index, step))
                    if step.finish_reason is not None:
                        del self._routes[step.seq_id]
                if arrivals:
                    self._loop.call_soon_threadsafe(self._deliver, arrivals)
        except Exception as error:
            log.exception("the engine thread failed; nothing more can run in this process")
            failure = f"the engine failed ({type(error).__name__}); restart the server"
            self._loop.call_soon_threadsafe(self._end, failure)

    def _take_inbox(self) -> bool:
        """Sleep until there is something to do, and obey the commands; False when it is time to end."""
        with self._wake:
            self._wake.wait_for(lambda: self._inbox or self._is_stopping or self._engine.has_work)
            commands, self._inbox = self._inbox, []
            if self._is_stopping:
                return False
        for command in commands:
            command()
        return True

    def _add(self, request: _Request) -> None:
        output = request.generation.output
        for completion in output.outputs:
            seq_id = self._engine.add(
                output.prompt_token_ids, request.generation.params, seed=completion.seed
            )
            request.seq_ids.append(seq_id)
            self._routes[seq_id] = request, completion.index

    def _abort_all(self, request: _Request) -> None:
        for seq_id in request.seq_ids:
            self._abort(seq_id)

    def _abort(self, seq_id: int) -> None:
        self._engine.abort(seq_id)
        self._routes.pop(seq_id, None)
