"""AsyncEngine: the engine on a thread of its own, for one event loop.

    event loop                                        engine thread
    submit -> queue, fair between owners -> seats
                             add, abort --> inbox  --> takes the inbox, steps
    each job's listener <-- one hand-over          <-- everything the step did, and when

The engine thread only schedules and computes; tokenizing and detokenizing happen on this side.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from pocketlm.engine.engine import EngineStats
from pocketlm.errors import EngineDead, EngineError, Overloaded, PocketLMError
from pocketlm.fair_queue import FairQueue
from pocketlm.generation import Generation, Piece, Prompt, admit
from pocketlm.loading import LoadedModel
from pocketlm.outputs import StepOutput, Timing
from pocketlm.sampling import SamplingParams

log = logging.getLogger(__name__)

LONG_PROMPT = 2048  # characters; a prompt this long is tokenized in a worker thread
MEMORY_OF_SPEED_S = 10.0  # of work, over which the tokens per second are averaged


class Listener(Protocol):
    """Who hears of a job, in the event loop."""

    def on_piece(self, piece: Piece, at: float) -> None:
        """The next piece, drawn at this time of the monotonic clock."""

    def on_end(self, error: PocketLMError | None) -> None:
        """Nothing more will come; called once, but not for a job that was cancelled."""


@dataclass(eq=False)
class Job:
    """One generation under way; `timing` is complete when it has ended."""

    generation: Generation
    owner: str
    listener: Listener
    submitted_at: float
    timing: Timing = field(default_factory=Timing)
    num_seats: int = 0  # it holds: one for each completion that the engine works on
    is_over: bool = False

    # Of the engine thread.
    seq_ids: list[int] = field(default_factory=list)
    scheduled_at: float | None = None
    first_token_at: float | None = None

    @property
    def num_completions(self) -> int:
        return len(self.generation.output.outputs)


class AsyncEngine:
    """Many jobs at once over one engine. `start` is called in the event loop that serves them all.

    `max_queue` jobs may wait for a seat; one more is Overloaded, for the owner who has most waiting.
    """

    def __init__(self, model: LoadedModel, *, max_queue: int = 256) -> None:
        self.model = model
        self.failure: str | None = None  # why nothing more can run
        self.max_queue = max_queue
        self._engine = model.engine
        self._jobs: set[Job] = set()  # submitted and not over
        self._queue: FairQueue[Job] = FairQueue()
        # A few more than the engine computes at once, so that none of its places is empty for the time of
        # a step before this side has heard of it.
        self._num_seats = model.engine.max_num_seqs + max(1, model.engine.max_num_seqs // 8)
        self._num_taken_seats = 0
        self._thread = threading.Thread(target=self._run, name="pocketlm-engine", daemon=True)

        # Shared by both threads, under the lock of `_wake`.
        self._wake = threading.Condition()
        self._inbox: list[Callable[[], None]] = []
        self._is_stopping = False

        # Of the engine thread: where the outputs of a sequence go, and how fast it works.
        self._routes: dict[int, tuple[Job, int]] = {}
        self._recent_tokens = self._recent_s = 0.0

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread; jobs still under way end with EngineDead."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)
        for seq_id in list(self._routes):
            self._abort(seq_id)
        self._die("the engine was stopped")

    @property
    def num_jobs(self) -> int:
        """Those submitted and not over."""
        return len(self._jobs)

    @property
    def tokens_per_s(self) -> float:
        """Tokens, read and drawn, for each second of recent work; 0 before the first step."""
        return self._recent_tokens / self._recent_s if self._recent_s else 0.0

    def stats(self) -> EngineStats:
        stats = self._engine.stats()
        return replace(stats, num_waiting=stats.num_waiting + len(self._queue))

    async def admit(self, prompt: Prompt, params: SamplingParams) -> Generation:
        """Tokenize and check a request, before anything is queued. InvalidRequest, EngineDead."""
        self._check_alive()
        if len(prompt) >= LONG_PROMPT:
            return await asyncio.to_thread(admit, self.model.tokenizer, self._engine, prompt, params)
        return admit(self.model.tokenizer, self._engine, prompt, params)

    def cost(self, generation: Generation) -> int:
        """The tokens that a request may take, read and drawn."""
        num_prompt_tokens = len(generation.output.prompt_token_ids)
        num_new_tokens = generation.params.num_new_tokens(num_prompt_tokens, self._engine.max_model_len)
        return num_prompt_tokens + len(generation.output.outputs) * num_new_tokens

    def submit(self, generation: Generation, listener: Listener, *, owner: str = "") -> Job:
        """Queue an admitted request. EngineDead; Overloaded at once, or later through the listener."""
        self._check_alive()
        job = Job(generation, owner, listener, submitted_at=time.monotonic())
        self._jobs.add(job)
        self._queue.push(owner, job, self.cost(generation))
        self._seat()
        if len(self._queue) > self.max_queue:
            refused = self._queue.shed()
            error = self._overloaded()
            if refused is job:
                self._jobs.discard(job)
                raise error
            self._end(refused, error)
        return job

    def cancel(self, job: Job) -> None:
        """Drop a job, wherever it is; its listener hears no more. No effect if it is over."""
        if not job.is_over:
            self._close(job)

    async def generate(self, generation: Generation, *, owner: str = "") -> AsyncGenerator[Piece, None]:
        """Run an admitted request; `generation.output` is the answer so far.

        However the loop over the pieces ends, the engine's work for the request ends with it.
        """
        arrivals = _Arrivals()
        job = self.submit(generation, arrivals, owner=owner)
        try:
            while (arrived := await arrivals.queue.get()) is not None:
                if isinstance(arrived, PocketLMError):
                    raise arrived
                yield arrived
        finally:
            self.cancel(job)

    def _check_alive(self) -> None:
        if self.failure is not None:
            raise EngineDead(self.failure)

    def _overloaded(self) -> Overloaded:
        rate = self.tokens_per_s
        wait_s = max(1.0, self._queue.cost / rate) if rate else 1.0
        return Overloaded(
            f"{len(self._queue)} requests are waiting already, at most {self.max_queue} may; "
            f"try again in {math.ceil(wait_s)} s, when about as much work as waits now will be done",
            retry_after_s=wait_s,
        )

    def _seat(self) -> None:
        """Let jobs in while there are seats. One that needs more than there are gets them all."""
        while self._queue:
            num_seats = self._queue.peek().num_completions
            if self._num_taken_seats and self._num_taken_seats + num_seats > self._num_seats:
                break
            job = self._queue.pop()
            job.num_seats = num_seats
            self._num_taken_seats += num_seats
            self._send(partial(self._add, job))

    def _release(self, job: Job, num_seats: int) -> None:
        job.num_seats -= num_seats
        self._num_taken_seats -= num_seats

    def _send(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._inbox.append(command)
            self._wake.notify()

    def _deliver(self, arrivals: list[tuple[Job, int, StepOutput]], at: float) -> None:
        for job, index, step in arrivals:
            if not job.is_over:
                self._push(job, index, step, at)
        self._seat()

    def _push(self, job: Job, index: int, step: StepOutput, at: float) -> None:
        try:
            piece = job.generation.push(index, step)
        except EngineError as error:
            self._end(job, error)
            return
        if piece is None:
            return
        if piece.finish_reason is None:
            job.listener.on_piece(piece, at)
            return
        self._release(job, 1)
        if step.finish_reason is None:  # a stop string
            self._send(partial(self._abort, step.seq_id))
        job.listener.on_piece(piece, at)
        if job.generation.is_finished:
            self._end(job, None)

    def _end(self, job: Job, error: PocketLMError | None) -> None:
        self._close(job)
        job.listener.on_end(error)

    def _close(self, job: Job) -> None:
        """Take back what the job holds: its place in the queue, or its seats and its work in the engine."""
        job.is_over = True
        self._jobs.discard(job)
        self._queue.remove(job.owner, job)
        if job.num_seats:
            self._release(job, job.num_seats)
            self._send(partial(self._abort_all, job))
            self._seat()

    def _die(self, failure: str) -> None:
        """Nothing more can run: let everyone who waits know."""
        self.failure = self.failure or failure
        for job in list(self._jobs):
            self._queue.remove(job.owner, job)
        for job in list(self._jobs):
            self._end(job, EngineDead(self.failure))

    # The engine thread runs what follows.

    def _run(self) -> None:
        try:
            while self._take_inbox():
                self._step()
        except Exception as error:
            log.exception("the engine thread failed; nothing more can run in this process")
            failure = f"the engine failed ({type(error).__name__}); restart the server"
            self._loop.call_soon_threadsafe(self._die, failure)

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

    def _step(self) -> None:
        started_at, cpu_before_s = time.monotonic(), self._cpu_s()
        steps = self._engine.step()
        at, cpu_s = time.monotonic(), self._cpu_s()
        step_cpu_s = None if cpu_s is None or cpu_before_s is None else cpu_s - cpu_before_s
        self._account(started_at, at, step_cpu_s, len(steps))
        arrivals = []
        for step in steps:
            job, index = self._routes[step.seq_id]
            if job.first_token_at is None:
                job.first_token_at = at
                job.timing.prefill_s = at - (job.scheduled_at or at)
            job.timing.decode_s = at - job.first_token_at
            arrivals.append((job, index, step))
            if step.finish_reason is not None:
                del self._routes[step.seq_id]
        if arrivals:
            self._loop.call_soon_threadsafe(self._deliver, arrivals, at)

    def _cpu_s(self) -> float | None:
        """Processor time of this thread and the decoder's."""
        worker_cpu_s = self._engine.worker_cpu_s()
        return None if worker_cpu_s is None else worker_cpu_s + time.thread_time()

    def _account(self, started_at: float, at: float, cpu_s: float | None, num_outputs: int) -> None:
        """Who the step worked for: its time goes to them by the tokens they had in it."""
        batch = self._engine.last_batch
        num_tokens = sum(item.num_scheduled_tokens for item in batch)
        for item in batch:
            seq = item.seq
            job, _ = self._routes[seq.seq_id]
            timing = job.timing
            if job.scheduled_at is None:
                job.scheduled_at = started_at
                timing.queue_s = started_at - job.submitted_at
                timing.num_cached_tokens = seq.num_cached_at_admission
            if cpu_s is None or timing.cpu_s is None:
                timing.cpu_s = None
            else:
                timing.cpu_s += cpu_s * item.num_scheduled_tokens / num_tokens
        fading = math.exp((started_at - at) / MEMORY_OF_SPEED_S)
        # More outputs than scheduled tokens: a draft was right, and these are what it gave.
        self._recent_tokens = self._recent_tokens * fading + max(num_tokens, num_outputs)
        self._recent_s = self._recent_s * fading + at - started_at

    def _add(self, job: Job) -> None:
        generation = job.generation
        for completion in generation.output.outputs:
            seq_id = self._engine.add(
                generation.output.prompt_token_ids,
                generation.params_of(completion.index),
                seed=completion.seed,
            )
            job.seq_ids.append(seq_id)
            self._routes[seq_id] = job, completion.index

    def _abort_all(self, job: Job) -> None:
        for seq_id in job.seq_ids:
            self._abort(seq_id)

    def _abort(self, seq_id: int) -> None:
        self._engine.abort(seq_id)
        self._routes.pop(seq_id, None)


class _Arrivals:
    """A listener that keeps what it hears for one reader; None is the end."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Piece | PocketLMError | None] = asyncio.Queue()

    def on_piece(self, piece: Piece, at: float) -> None:
        self.queue.put_nowait(piece)

    def on_end(self, error: PocketLMError | None) -> None:
        self.queue.put_nowait(error)
