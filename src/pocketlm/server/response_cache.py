"""ResponseCache: answers kept for equal requests, in this process or in Redis.

A cache never fails a request: where its store is away or holds something it did not write, there is
no answer, and an error is counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from pocketlm.errors import IdempotencyConflict
from pocketlm.outputs import FinishReason, RequestOutput
from pocketlm.server.cached_answer import CachedAnswer
from pocketlm.server.memory_store import MemoryStore


class CacheMetrics(Protocol):
    """What hears of everything that is counted here; server.metrics.Metrics is one."""

    def cache_hit(self) -> None: ...
    def cache_miss(self) -> None: ...
    def cache_bypass(self) -> None: ...
    def cache_error(self) -> None: ...
    def cache_eviction(self) -> None: ...


class Store(Protocol):
    """Bytes by key, each for the time to live. No method raises because of what is outside."""

    name: str

    async def start(self) -> None: ...
    async def get(self, key: str) -> bytes | None: ...
    async def put(self, key: str, value: bytes) -> None: ...
    async def delete(self, key: str) -> None: ...
    async def clear(self) -> int | None: ...
    async def size(self) -> tuple[int, int] | None: ...
    def size_now(self) -> tuple[int, int] | None: ...
    async def close(self) -> None: ...


@dataclass(slots=True)
class Counts:
    """Since the start, of this process."""

    hits: int = 0
    misses: int = 0
    bypasses: int = 0
    errors: int = 0
    evictions: int = 0


class ResponseCache:
    """Used by one event loop."""

    def __init__(self, ttl_s: float, max_bytes: int, url: str | None, metrics: CacheMetrics) -> None:
        self._ttl_s = ttl_s
        self._max_bytes = max_bytes
        self._counts = Counts()
        self._metrics = metrics
        self._store = self._open(url)

    def _open(self, url: str | None) -> Store:
        if url is None:
            return MemoryStore(self._ttl_s, self._max_bytes, self._evicted)
        from pocketlm.server.redis_store import RedisStore  # its client is an optional dependency

        return RedisStore(url, self._ttl_s, self._failed)

    async def start(self) -> None:
        await self._store.start()

    async def get(self, key: str) -> RequestOutput | None:
        answer = await self._find(key)
        if answer is None:
            self._counts.misses += 1
            self._metrics.cache_miss()
            return None
        self._counts.hits += 1
        self._metrics.cache_hit()
        return answer.output

    async def put(self, key: str, output: RequestOutput) -> None:
        """Keep an answer that came to its own end; one that was cut short is not the answer."""
        await self._keep(CachedAnswer(key, output))

    async def get_idempotent(self, key: str, request_digest: str) -> RequestOutput | None:
        """The answer that was given to this idempotency key; not counted as a hit or a miss.

        Raises IdempotencyConflict if the key stood for another request.
        """
        answer = await self._find(key)
        if answer is None:
            return None
        if answer.request_digest != request_digest:
            raise IdempotencyConflict(
                "this Idempotency-Key was used for another request; send a new key with a new request"
            )
        return answer.output

    async def put_idempotent(self, key: str, request_digest: str, output: RequestOutput) -> None:
        await self._keep(CachedAnswer(key, output, request_digest))

    def bypass(self) -> None:
        """Count a request that did not want a kept answer, or whose answer may not be kept."""
        self._counts.bypasses += 1
        self._metrics.cache_bypass()

    async def clear(self) -> int | None:
        """Remove everything, answers to idempotency keys too.

        How many entries it were; None if Redis did not answer, and some may be left.
        """
        return await self._store.clear()

    async def stats(self) -> dict[str, Any]:
        """What GET /cache/stats answers. Counts are of this process, entries and bytes of the store."""
        num_entries, num_bytes = await self._store.size() or (None, None)
        return {
            "backend": self._store.name,
            "entries": num_entries,  # null: Redis did not answer
            "bytes": num_bytes,
            "max_bytes": self._max_bytes if self._store.name == "memory" else None,  # Redis has its own bound
            "ttl_seconds": self._ttl_s,
            **asdict(self._counts),
        }

    def size_now(self) -> tuple[int, int] | None:
        """Entries and bytes in this process, for the metrics; None where they are in Redis."""
        return self._store.size_now()

    async def close(self) -> None:
        await self._store.close()

    async def _find(self, key: str) -> CachedAnswer | None:
        value = await self._store.get(key)
        if value is None:
            return None
        answer = CachedAnswer.from_bytes(key, value)
        if answer is None:
            self._failed()
            await self._store.delete(key)
        return answer

    async def _keep(self, answer: CachedAnswer) -> None:
        if all(c.finish_reason in (FinishReason.STOP, FinishReason.LENGTH) for c in answer.output.outputs):
            value = answer.to_bytes()
            if len(value) <= self._max_bytes:
                await self._store.put(answer.key, value)

    def _failed(self) -> None:
        self._counts.errors += 1
        self._metrics.cache_error()

    def _evicted(self) -> None:
        self._counts.evictions += 1
        self._metrics.cache_eviction()
