"""Registry: several models by name, each loaded when it is first asked for, within a budget of memory.

    AVAILABLE -- first use --> LOADING --> READY -- idle: keep_alive is over, or another needs the memory
        ^                         |                   |
        |                         v                   |
        |                      FAILED                 |
        +---------------------------------------------+

A FAILED model is tried again when it is next asked for, but not within LOAD_COOLDOWN_S. All of this is
of one event loop; files are read in threads beside it, so that only those wait for a load who asked for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import ParamSpec, Protocol, TypeVar

from pocketlm import hardware, hub, loading
from pocketlm.async_engine import AsyncEngine
from pocketlm.config import EngineConfig
from pocketlm.errors import (
    ConfigError,
    InsufficientMemory,
    ModelLoadError,
    ModelNotFound,
    ModelUnavailable,
    Overloaded,
    PocketLMError,
)
from pocketlm.known_answer import OWNER
from pocketlm.loading import LoadedModel, readable
from pocketlm.memory import MemoryEstimate, return_freed_memory

log = logging.getLogger(__name__)

BUDGET_SHARE = 0.8  # of the free memory; what a step computes with, and the rest of the process, needs some
LOAD_COOLDOWN_S = 30.0  # after a failed load, in which nobody tries again
RETRY_S = 5.0  # when to come back for a model that is being loaded, or waits for memory
MEMORY_CHECK_S = 1.0  # at least this often a model that waits for memory looks whether there is some
KEEP_ALIVE_CHECK_S = 10.0  # at least this often idle models are looked for

P = ParamSpec("P")
T = TypeVar("T")


class Loader(Protocol):
    def __call__(self, name: str, config: EngineConfig, available_bytes: int | None) -> LoadedModel: ...


class Estimator(Protocol):
    def __call__(self, name: str, config: EngineConfig, available_bytes: int) -> MemoryEstimate: ...


class ModelState(str, Enum):
    AVAILABLE = "available"  # not in memory
    LOADING = "loading"  # or waiting for memory
    READY = "ready"
    FAILED = "failed"  # it could not be loaded when it was last asked for; `error` says why


@dataclass(eq=False)
class ModelEntry:
    """One model that may be asked for. Others read; the registry writes."""

    name: str
    aliases: tuple[str, ...]
    created: int  # when the server learnt of it, in seconds since 1970
    state: ModelState = ModelState.AVAILABLE
    error: str | None = None
    model: LoadedModel | None = None  # while READY
    engine: AsyncEngine | None = None  # while READY, once the event loop runs
    estimate: MemoryEstimate | None = None  # None: its files have not been looked at
    num_users: int = 0  # who use it, or wait for it
    last_used: float = 0.0  # of the registry's clock
    load_s: float | None = None  # what the latest load took
    check_failure: str | None = None  # why the known-answer check failed, the last time it was made

    # Of the registry alone.
    held_bytes: int = 0  # of the budget; more than 0 while LOADING or READY, or still being unloaded
    task: asyncio.Task[None] | None = None  # that loads it
    refusal: PocketLMError | None = None  # what those hear who ask for it while it is FAILED
    retry_at: float = -math.inf  # when a FAILED one may be tried again

    @property
    def machine_bytes(self) -> int:
        """What it may be taking of the machine's memory: while it loads, more than it will hold."""
        if self.state is ModelState.LOADING and self.held_bytes and self.estimate is not None:
            return max(self.held_bytes, self.estimate.load_bytes)
        return self.held_bytes

    @property
    def is_idle(self) -> bool:
        return self.state is ModelState.READY and self.num_users == 0


class Registry:
    """The models named at start. The first one is the default, loaded by `preload`."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        aliases: Mapping[str, str] | None = None,
        config: EngineConfig | None = None,
        memory_budget: int | None = None,
        keep_alive_s: float | None = None,
        max_queue: int = 256,
        loader: Loader = loading.load_model,
        estimator: Estimator = loading.estimate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        aliases = dict(aliases or {})
        _check_names(names, aliases)
        now = int(time.time())
        self._entries = {
            name: ModelEntry(name, tuple(alias for alias, of in aliases.items() if of == name), now)
            for name in names
        }
        self._names = {**{name: name for name in names}, **aliases}
        self._config = config or EngineConfig()
        self.memory_budget, self.memory_budget_reason = _resolve_budget(memory_budget)
        log.info("memory_budget=%s: %s", readable(self.memory_budget), self.memory_budget_reason)
        self._keep_alive_s = keep_alive_s
        self._max_queue = max_queue
        self._loader, self._estimator, self._clock = loader, estimator, clock
        self._changed = asyncio.Event()  # memory may have become free: someone left, or a load ended
        self._keep_alive_task: asyncio.Task[None] | None = None
        self._is_stopped = False

    @classmethod
    def of(cls, *models: LoadedModel, max_queue: int = 256) -> Registry:
        """Of models that are loaded already."""
        registry = cls([model.name for model in models], max_queue=max_queue)
        for model in models:
            registry._hold(registry._entries[model.name], model)
        return registry

    def entries(self) -> list[ModelEntry]:
        """All models, the default first."""
        return list(self._entries.values())

    def resolve(self, name: str | None) -> str:
        """The name of the model that a request means: a name, an alias, or None for the default."""
        if name is None:
            return next(iter(self._entries))
        if name not in self._names:
            raise ModelNotFound(
                f"the model {name[:100]!r} is not served here; this server has {', '.join(self._names)}",
                param="model",
            )
        return self._names[name]

    def preload(self) -> None:
        """Load the default model, before the event loop runs.

        ModelLoadError, ConfigError, InsufficientMemory.
        """
        first, *others = self._entries.values()
        first.estimate = self._estimator(first.name, self._config, self._part_of(first))
        self._check_fits(first, first.estimate)
        available = self._grant(first, first.estimate)
        self._hold(first, self._loader(first.name, self._config, available))
        for entry in others:
            if hub.is_local(entry.name):  # reading the headers of files that are here takes no time
                try:
                    entry.estimate = self._estimator(entry.name, self._config, self._part_of(entry))
                except PocketLMError as error:
                    log.warning("the model %s cannot be loaded as it is now: %s", entry.name, error)

    async def start(self) -> None:
        """Start the engines of what is loaded. Called in the event loop that serves them."""
        for entry in self._entries.values():
            if entry.model is not None:
                self._start_engine(entry, entry.model)
        if self._keep_alive_s is not None:
            self._keep_alive_task = asyncio.create_task(self._keep_alive(self._keep_alive_s))

    def stop_loading(self) -> None:
        """Who waits for a load hears that the server stops; what is loaded can still be used.

        A load that is under way in a thread is left to itself.
        """
        self._is_stopped = True
        for entry in self._entries.values():
            if entry.task is not None:
                entry.task.cancel()

    async def stop(self) -> None:
        """Stop all loads and engines."""
        tasks = [entry.task for entry in self._entries.values() if entry.task is not None]
        self.stop_loading()
        if self._keep_alive_task is not None:
            self._keep_alive_task.cancel()
            tasks.append(self._keep_alive_task)
        await asyncio.gather(*tasks, return_exceptions=True)
        engines = [entry.engine for entry in self._entries.values() if entry.engine is not None]
        await asyncio.gather(*(engine.stop() for engine in engines))

    @asynccontextmanager
    async def use(self, name: str | None, deadline: float | None = None) -> AsyncIterator[AsyncEngine]:
        """The engine of a model, loaded first if need be; it stays loaded until the block ends.

        ModelNotFound; InsufficientMemory; ModelUnavailable if it cannot be loaded, or is not before
        `deadline`, a time of the event loop. The load goes on when one who waits for it gives up.
        """
        entry = self._entries[self.resolve(name)]
        with self._pinned(entry):
            try:
                yield await self._ready_engine(entry, deadline)
            finally:
                entry.last_used = self._clock()

    async def check(self, name: str) -> str | None:
        """Ask a loaded model the question whose answer is known: what is wrong, or None."""
        entry = self._entries[self.resolve(name)]
        engine, known = entry.engine, entry.model.known_answer if entry.model else None
        if engine is None or known is None:
            return entry.check_failure
        with self._pinned(entry):
            try:
                generation = await engine.admit(known.prompt_token_ids, known.params)
                async for _ in engine.generate(generation, owner=OWNER):
                    pass
            except Overloaded:
                return entry.check_failure  # that says nothing about the model
            except PocketLMError as error:
                entry.check_failure = f"the known-answer check failed: {error}"
            else:
                entry.check_failure = known.problem(generation.output.outputs[0].token_ids)
        if entry.check_failure is not None:
            log.error("model %s: %s", entry.name, entry.check_failure)
        return entry.check_failure

    async def unload_expired(self) -> None:
        """Unload what has been idle for `keep_alive_s`."""
        assert self._keep_alive_s is not None
        expired = self._clock() - self._keep_alive_s
        for entry in self._entries.values():
            if entry.is_idle and entry.last_used <= expired:
                await self._unload(entry, f"idle for {self._keep_alive_s:g} s")

    @contextmanager
    def _pinned(self, entry: ModelEntry) -> Iterator[None]:
        entry.num_users += 1
        try:
            yield
        finally:
            entry.num_users -= 1
            self._changed.set()

    async def _ready_engine(self, entry: ModelEntry, deadline: float | None) -> AsyncEngine:
        while entry.state is not ModelState.READY:
            if entry.task is None:
                self._check_may_load(entry)
                entry.state, entry.error, entry.refusal = ModelState.LOADING, None, None
                entry.task = asyncio.create_task(self._load(entry))
            left_s = None if deadline is None else deadline - asyncio.get_running_loop().time()
            # `wait` does not cancel the load when this waiter is cancelled or out of time.
            done, _ = await asyncio.wait({entry.task}, timeout=left_s)
            if not done:
                raise ModelUnavailable(
                    f"the model {entry.name} was not loaded in time: {self._reason_to_wait(entry)}; "
                    f"try again in {RETRY_S:g} s",
                    param="model",
                    retry_after_s=RETRY_S,
                )
            if entry.refusal is not None:
                raise _again(entry.refusal, entry.refusal.retry_after_s)
        assert entry.engine is not None, "start was not called"
        return entry.engine

    def _check_may_load(self, entry: ModelEntry) -> None:
        if self._is_stopped:
            raise ModelUnavailable("the server is shutting down", param="model")
        left_s = entry.retry_at - self._clock()
        if entry.refusal is not None and left_s > 0:
            raise _again(entry.refusal, None if entry.refusal.retry_after_s is None else left_s)

    def _reason_to_wait(self, entry: ModelEntry) -> str:
        if entry.held_bytes:
            return "it is still being loaded"
        busy = [other.name for other in self._others(entry) if other.held_bytes]
        return f"its memory is in use by {', '.join(busy)}" if busy else "its files are still being fetched"

    # Loading: one task for each load, whoever waits for it.

    async def _load(self, entry: ModelEntry) -> None:
        try:
            await self._load_or_raise(entry)
        except InsufficientMemory as error:
            self._refuse(entry, error, RETRY_S)  # soon: nothing is broken, and looking again costs little
        except (ModelLoadError, ConfigError) as error:
            reason = hub.without_folders(entry.name, str(error))
            self._refuse(entry, _load_failed(entry, reason), LOAD_COOLDOWN_S)
        except Exception as error:
            log.exception("loading the model %s failed", entry.name)
            reason = f"{type(error).__name__}, the log has the details"  # its text may hold anything
            self._refuse(entry, _load_failed(entry, reason), LOAD_COOLDOWN_S)
        finally:
            if entry.state is not ModelState.READY:
                entry.held_bytes = 0
            entry.task = None
            self._changed.set()

    async def _load_or_raise(self, entry: ModelEntry) -> None:
        while entry.held_bytes:  # it is still being unloaded
            await self._change()
        part = self._part_of(entry)
        entry.estimate = await _in_thread(self._estimator, entry.name, self._config, part)
        if not await self._make_room(entry, entry.estimate):
            entry.state = ModelState.AVAILABLE
            return
        available = self._grant(entry, entry.estimate)
        model = await _in_thread(self._loader, entry.name, self._config, available)
        self._hold(entry, model)
        self._start_engine(entry, model)

    def _refuse(self, entry: ModelEntry, error: PocketLMError, cooldown_s: float) -> None:
        entry.state, entry.error, entry.refusal = ModelState.FAILED, str(error), error
        entry.retry_at = self._clock() + cooldown_s
        log.error("%s", error)

    def _hold(self, entry: ModelEntry, model: LoadedModel) -> None:
        entry.state, entry.model, entry.load_s = ModelState.READY, model, model.load_s
        entry.held_bytes = model.memory_bytes
        entry.last_used = self._clock()
        entry.check_failure = model.known_answer.failure if model.known_answer else None
        if entry.check_failure is not None:
            log.error("model %s: %s", entry.name, entry.check_failure)

    def _start_engine(self, entry: ModelEntry, model: LoadedModel) -> None:
        entry.engine = AsyncEngine(model, max_queue=self._max_queue)
        entry.engine.start()

    async def _unload(self, entry: ModelEntry, reason: str) -> None:
        """Unload an idle model. Its memory counts as held until it is free."""
        log.info("unloading the model %s: %s", entry.name, reason)
        engine = entry.engine
        assert engine is not None
        entry.state, entry.model, entry.engine, entry.check_failure = ModelState.AVAILABLE, None, None, None
        await engine.stop()
        del engine  # the last reference: what follows gives its memory back
        await asyncio.to_thread(return_freed_memory)
        entry.held_bytes = 0
        self._changed.set()

    async def _keep_alive(self, keep_alive_s: float) -> None:
        while True:
            await asyncio.sleep(min(keep_alive_s / 2, KEEP_ALIVE_CHECK_S))
            await self.unload_expired()

    # The budget is for what loaded models take. Loading takes more for a moment, which the machine must have.

    async def _make_room(self, entry: ModelEntry, estimate: MemoryEstimate) -> bool:
        """Wait until there is memory for a model, unloading idle ones; False if nobody wants it any more."""
        while self._lacks(estimate, self._others(entry), unloaded=[]):
            self._check_fits(entry, estimate)
            idle = [other for other in self._others(entry) if other.is_idle]
            if idle and not self._lacks(estimate, self._others(entry), unloaded=idle):
                oldest = min(idle, key=lambda other: other.last_used)
                await self._unload(oldest, f"the model {entry.name} needs memory")
            elif entry.num_users:
                await self._change()
            else:
                return False
        return True

    def _check_fits(self, entry: ModelEntry, estimate: MemoryEstimate) -> None:
        """Refuse what has no room even if no other model were loaded."""
        others = self._others(entry)
        lacks = self._lacks(estimate, others, unloaded=others)
        if not lacks:
            return
        if estimate.least_bytes > self.memory_budget:
            problem = (
                f"needs {readable(estimate.least_bytes)} of memory, and the memory budget is "
                f"{readable(self.memory_budget)}; raise memory_budget"
            )
        else:
            problem = (
                f"needs {readable(estimate.load_bytes)} of memory while it loads, and this machine has "
                f"{readable(max(0, estimate.load_bytes - lacks))} for it, with all other models unloaded; "
                "give it more"
            )
        raise InsufficientMemory(
            f"the model {entry.name} {problem}, lower max_model_len or set dtype to int8", param="model"
        )

    def _lacks(
        self, estimate: MemoryEstimate, others: list[ModelEntry], *, unloaded: list[ModelEntry]
    ) -> int:
        """How many bytes are missing for a model, if some of the others were unloaded; 0 if none are."""
        of_budget = self._left_of_budget(others) + sum(other.held_bytes for other in unloaded)
        of_machine = self._left_of_machine(others) + sum(other.machine_bytes for other in unloaded)
        return max(0, estimate.least_bytes - of_budget, estimate.load_bytes - of_machine)

    def _left_of_budget(self, others: list[ModelEntry]) -> int:
        return self.memory_budget - sum(other.held_bytes for other in others)

    def _left_of_machine(self, others: list[ModelEntry]) -> int:
        """What is free now, less what loads under way may still take of it."""
        available, _ = hardware.available_memory()
        loading = (other for other in others if other.state is ModelState.LOADING)
        return int(BUDGET_SHARE * available) - sum(other.machine_bytes for other in loading)

    def _part_of(self, entry: ModelEntry) -> int:
        """Its equal part of the budget that is left, so that the first model leaves room for the rest."""
        others = self._others(entry)
        return self._left_of_budget(others) // (1 + sum(not other.held_bytes for other in others))

    def _grant(self, entry: ModelEntry, estimate: MemoryEstimate) -> int:
        """The bytes that a model may take once it is loaded, from now on counted as held."""
        part = min(self._part_of(entry), self._left_of_machine(self._others(entry)))
        entry.held_bytes = max(estimate.least_bytes, part)
        return entry.held_bytes

    def _others(self, entry: ModelEntry) -> list[ModelEntry]:
        return [other for other in self._entries.values() if other is not entry]

    async def _change(self) -> None:
        """Until memory may have become free, or a waiter has left."""
        self._changed.clear()
        with suppress(asyncio.TimeoutError):  # other processes give memory back without a word
            await asyncio.wait_for(self._changed.wait(), MEMORY_CHECK_S)


def parse_aliases(entries: Sequence[str]) -> dict[str, str]:
    """The aliases of entries NEW=MODEL. ConfigError."""
    aliases: dict[str, str] = {}
    for entry in entries:
        alias, equals, name = entry.partition("=")
        if not (alias and equals and name):
            raise ConfigError(f"alias: {entry!r} is not of the form NEW=MODEL")
        if alias in aliases:
            raise ConfigError(f"alias: {alias!r} is given twice")
        aliases[alias] = name
    return aliases


def _check_names(names: Sequence[str], aliases: Mapping[str, str]) -> None:
    if not names:
        raise ConfigError("model: name at least one model to serve")
    for name, count in Counter(names).items():
        if count > 1:
            raise ConfigError(f"model: {name!r} is given {count} times; once is enough")
    for alias, name in aliases.items():
        if name not in names:
            raise ConfigError(
                f"alias: {alias!r} stands for {name!r}, which is not served; there is {', '.join(names)}"
            )
        if alias in names:
            raise ConfigError(f"alias: {alias!r} is itself the name of a model that is served")


def _resolve_budget(configured: int | None) -> tuple[int, str]:
    if configured is not None:
        return configured, "as configured"
    available, where = hardware.available_memory()
    return int(BUDGET_SHARE * available), f"{BUDGET_SHARE:.0%} of {readable(available)} {where}"


def _load_failed(entry: ModelEntry, reason: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"the model {entry.name} could not be loaded: {reason}", param="model", retry_after_s=LOAD_COOLDOWN_S
    )


def _again(error: PocketLMError, retry_after_s: float | None) -> PocketLMError:
    """The same error for someone else, as each raise adds to an exception's traceback."""
    return type(error)(str(error), param=error.param, retry_after_s=retry_after_s)


async def _in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As asyncio.to_thread, but in a daemon thread: a download that hangs does not keep the process alive."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # from now on it takes a result even if nobody waits for it

    def run() -> None:
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="pocketlm-load", daemon=True).start()
    return await asyncio.wrap_future(future)
