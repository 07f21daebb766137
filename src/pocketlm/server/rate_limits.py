"""RateLimits: how many requests and tokens a minute each owner may have.

Counted by the library `limits` with a sliding window: two counters, of this minute and the one
before, the latter weighted by how much of it is still within the last 60 seconds. An owner
so takes the same small memory whatever the limit is, and a burst across two minutes is not free. The
price is that the count is an estimate, and may let one request too many through as a minute begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from pocketlm.errors import RateLimited

if TYPE_CHECKING:
    from pocketlm.server.redis_link import RedisLink

WINDOW_S = 60
KEY_PREFIX = "pocketlm:rate"


@dataclass(frozen=True)
class _Window:
    """What an owner has taken lately."""

    previous: int  # in the window before
    previous_s: float  # until none of it counts any more
    current: int
    current_s: float  # until none of it counts any more: it is the window before for its last 60 s

    @property
    def used(self) -> int:
        return math.floor(self.previous * self.previous_s / WINDOW_S + self.current)

    def wait_s(self, most: int) -> float:
        """How long until no more than `most` are used, if nothing is added."""
        if self.used <= most:
            return 0.0
        if self.current <= most:  # while the window before still counts
            return self.previous_s - (most + 1 - self.current) * WINDOW_S / self.previous
        return self.current_s - (most + 1) * WINDOW_S / self.current


class RateLimits:
    """None is no limit. `on_error` hears of each request that could not be counted in Redis."""

    def __init__(
        self, requests: int | None, tokens: int | None, url: str | None, on_error: Callable[[], None]
    ) -> None:
        self._requests = _item(requests, "requests")
        self._tokens = _item(tokens, "tokens")
        self._here = _Counters(MemoryStorage())
        self._link: RedisLink | None = None
        if url is not None:
            from pocketlm.server.redis_link import RedisLink  # its client is an optional dependency

            self._link = RedisLink("rate_limit_url", url, "rates are counted in this process alone", on_error)
            self._shared = _Counters(_redis_storage(self._link))

    async def take_request(self, owner: str) -> dict[str, str]:
        """Count a request; headers that tell of the limit. RateLimited, with the same headers."""
        return await self._take(self._requests, owner, 1)

    async def take_tokens(self, owner: str, count: int) -> dict[str, str]:
        """Count the tokens that a request may take, in the same way."""
        return await self._take(self._tokens, owner, count)

    async def close(self) -> None:
        if self._link is not None:
            await self._link.close()

    async def _take(self, item: RateLimitItemPerMinute | None, owner: str, cost: int) -> dict[str, str]:
        if item is None:
            return {}
        limit, unit = item.amount, item.namespace
        is_taken, window = await self._count(item, owner, cost)
        left = max(0, limit - window.used)
        headers = {
            f"x-ratelimit-limit-{unit}": str(limit),
            f"x-ratelimit-remaining-{unit}": str(left),
            f"x-ratelimit-reset-{unit}": f"{math.ceil(window.wait_s(0))}s",
        }
        if is_taken:
            return headers
        if cost > limit:
            error = RateLimited(
                f"this request may take {cost} {unit}, more than the {limit} that are allowed a minute; "
                "shorten the prompt or lower max_tokens"
            )
            error.should_retry = False
        else:
            wait_s = max(1.0, window.wait_s(limit - cost))
            error = RateLimited(
                f"{limit} {unit} are allowed a minute, {left} of them are left, and this request may take "
                f"{cost}; try again in {math.ceil(wait_s)} s",
                retry_after_s=wait_s,
            )
        error.headers = headers
        raise error

    async def _count(self, item: RateLimitItemPerMinute, owner: str, cost: int) -> tuple[bool, _Window]:
        if self._link is not None:
            counted = await self._link.ask(lambda: self._shared.take(item, owner, cost))
            if counted is not None:
                return counted
        return await self._here.take(item, owner, cost)


class _Counters:
    """The counters in one store."""

    def __init__(self, storage: MemoryStorage | RedisStorage) -> None:
        self._storage = storage
        self._limiter = SlidingWindowCounterRateLimiter(storage)

    async def take(self, item: RateLimitItemPerMinute, owner: str, cost: int) -> tuple[bool, _Window]:
        """Whether there was room, and the counts after that; what finds no room is not counted."""
        is_taken = await self._limiter.hit(item, owner, cost=cost)
        return is_taken, _Window(*await self._storage.get_sliding_window(item.key_for(owner), WINDOW_S))


def _item(amount: int | None, namespace: str) -> RateLimitItemPerMinute | None:
    return None if amount is None else RateLimitItemPerMinute(amount, namespace=namespace)


def _redis_storage(link: RedisLink) -> RedisStorage:
    return RedisStorage(
        "async+redis://",  # unused: the link's pool knows where
        implementation="redispy",
        key_prefix=KEY_PREFIX,
        connection_pool=link.pool,  # type: ignore[arg-type]  # it says str, and hands it on
    )
