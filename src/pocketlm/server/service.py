"""Service: what the routes share, and the way of a request from its prompts to a Run."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from pocketlm.async_engine import AsyncEngine
from pocketlm.config import ServerConfig
from pocketlm.errors import ContextLengthExceeded, InvalidRequest, Overloaded
from pocketlm.generation import Generation, Prompt
from pocketlm.outputs import RequestOutput
from pocketlm.registry import Registry
from pocketlm.sampling import SamplingParams
from pocketlm.server.cached_answer import idempotency_key_of, key_of
from pocketlm.server.checks import Checks
from pocketlm.server.flights import Flights, Store
from pocketlm.server.metrics import Metrics
from pocketlm.server.protocol.fields import MAX_TIMEOUT_S
from pocketlm.server.rate_limits import RateLimits
from pocketlm.server.response_cache import ResponseCache
from pocketlm.server.runs import Run

IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True)
class CachePolicy:
    """What the response cache may do for one request."""

    may_read: bool
    may_store: bool
    idempotency_key: str | None = None

    @property
    def reads(self) -> bool:
        """Whether an answer that is kept may be given, so that it is shared by equal requests, too."""
        return self.may_read or self.idempotency_key is not None

    @classmethod
    def of(
        cls, headers: Mapping[str, str], use_cache: bool | None, *, is_on: bool, by_default: bool
    ) -> CachePolicy:
        """`use_cache` is the request's field; `by_default` whether such a request is kept without it."""
        directives = {part.strip().lower() for part in headers.get("cache-control", "").split(",")}
        wanted = is_on and (by_default if use_cache is None else use_cache) and "no-store" not in directives
        key = headers.get("idempotency-key")
        if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
            raise InvalidRequest(
                "the header Idempotency-Key must have 1 to 255 visible ASCII characters",
                param="Idempotency-Key",
            )
        return cls(wanted and "no-cache" not in directives, wanted, key)


@dataclass
class Service:
    config: ServerConfig
    registry: Registry
    metrics: Metrics
    cache: ResponseCache
    rate_limits: RateLimits
    checks: Checks
    flights: Flights
    num_streams: int = field(default=0, init=False)
    drain_deadline: float = field(default=math.inf, init=False)  # of the event loop's clock
    _runs: set[Run] = field(default_factory=set, init=False)

    @property
    def is_draining(self) -> bool:
        return self.drain_deadline < math.inf

    def drain(self) -> None:
        """The server is to stop: every run ends before the server's patience does."""
        patience_s = self.config.drain_timeout
        self.drain_deadline = asyncio.get_running_loop().time() + patience_s - min(1.0, patience_s / 4)
        for run in self._runs:
            run.end_by(self.drain_deadline)
        self.registry.stop_loading()

    @contextmanager
    def open_run(self, *, started_at: float, deadline: float, beat_s: float | None) -> Iterator[Run]:
        run = Run(started_at=started_at, deadline=deadline, beat_s=beat_s)
        run.end_by(self.drain_deadline)
        self._runs.add(run)
        try:
            yield run
        finally:
            run.close()
            self._runs.discard(run)

    def deadline(self, arrived_at: float, headers: Mapping[str, str], timeout_s: float | None) -> float:
        """When a request that arrived at this time must have ended; the smaller bound wins."""
        bounds = [bound for bound in (timeout_s, _timeout_header(headers)) if bound is not None]
        return arrived_at + min(bounds, default=self.config.request_timeout)

    async def admit(
        self, engine: AsyncEngine, prompts: list[Prompt], params: SamplingParams
    ) -> list[Generation]:
        """Tokenize and check the prompts, before anything is queued. InvalidRequest, EngineDead."""
        generations = []
        for prompt in prompts:
            generations.append(await engine.admit(prompt, params))
            await asyncio.sleep(0)  # there may be many; let others have their turn
        limit = self.config.max_prompt_tokens
        for generation in generations:
            num_tokens = len(generation.output.prompt_token_ids)
            if limit is not None and num_tokens > limit:
                raise ContextLengthExceeded(
                    f"the prompt has {num_tokens} tokens; this server takes at most {limit}", param="prompt"
                )
        return generations

    async def start(
        self, run: Run, engine: AsyncEngine, generations: list[Generation], policy: CachePolicy, owner: str
    ) -> dict[str, str]:
        """Give the run its answers, from the cache or the engine; headers for the response.

        RateLimited, Overloaded, IdempotencyConflict, EngineDead.
        """
        requests = [self._request_key(engine, generation) for generation in generations]
        keys = requests
        if policy.idempotency_key is not None:
            keys = [idempotency_key_of(owner, policy.idempotency_key, i) for i, _ in enumerate(generations)]
            # The whole request must be the same, not only the prompts that both have.
            requests = ["\n".join(requests)] * len(requests)
        cached = [await self._cached(policy, key, r) for key, r in zip(keys, requests, strict=True)]
        num_tokens = sum(
            engine.cost(g) for g, output in zip(generations, cached, strict=True) if output is None
        )
        headers = await self.rate_limits.take_tokens(owner, num_tokens) if num_tokens else {}
        for generation, key, request, output in zip(generations, keys, requests, cached, strict=True):
            if output is not None:
                run.add_cached(output)
                continue
            flight = self.flights.start(
                engine,
                generation,
                owner=owner,
                share=(key, request) if policy.reads else None,
                store=self._store(policy, key, request),
            )
            run.add_flight(flight)
        return headers

    def _request_key(self, engine: AsyncEngine, generation: Generation) -> str:
        model, output = engine.model, generation.output
        return key_of(
            model.fingerprint, output.prompt, output.prompt_token_ids, generation.params, model.max_model_len
        )

    async def _cached(self, policy: CachePolicy, key: str, request: str) -> RequestOutput | None:
        if policy.idempotency_key is not None:
            return await self.cache.get_idempotent(key, request)
        if policy.may_read:
            return await self.cache.get(key)
        self.cache.bypass()
        return None

    def _store(self, policy: CachePolicy, key: str, request: str) -> Store | None:
        if policy.idempotency_key is not None:
            return partial(self.cache.put_idempotent, key, request)
        return partial(self.cache.put, key) if policy.may_store else None

    @contextmanager
    def stream_slot(self) -> Iterator[None]:
        """A place among the streams that are open at one time, or Overloaded."""
        if self.num_streams >= self.config.max_streams:
            raise Overloaded(
                f"{self.num_streams} streams are open already, at most {self.config.max_streams} may be; "
                "try again later, or without stream",
                retry_after_s=1.0,
            )
        self.num_streams += 1
        self.metrics.stream_opened()
        try:
            yield
        finally:
            self.num_streams -= 1
            self.metrics.stream_closed()


def is_deterministic(params: SamplingParams) -> bool:
    return params.temperature == 0 or params.seed is not None


def _timeout_header(headers: Mapping[str, str]) -> float | None:
    text = headers.get("x-request-timeout-seconds")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise InvalidRequest(
            f"the header X-Request-Timeout-Seconds must be a number above 0 and at most {MAX_TIMEOUT_S:g}, "
            f"got {text!r:.60}",
            param="X-Request-Timeout-Seconds",
        )
    return seconds
