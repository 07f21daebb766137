"""RedisStore: what the response cache keeps in Redis, where replicas share it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pocketlm.server.redis_link import RedisLink

PREFIX = "pocketlm:cache:"
SCAN_COUNT = 1000


class RedisStore:
    name = "redis"

    def __init__(self, url: str, ttl_s: float, on_error: Callable[[], None]) -> None:
        self._link = RedisLink("cache_url", url, "no response cache", on_error)
        self._client: Any = self._link.client  # its type hints leave open whether it answers bytes
        self._ttl_ms = max(1, round(ttl_s * 1000))

    async def start(self) -> None:
        """Look whether it answers; the log says so if it does not."""
        await self._link.ask(self._client.ping)

    async def get(self, key: str) -> bytes | None:
        value: bytes | None = await self._link.ask(lambda: self._client.get(PREFIX + key))
        return value

    async def put(self, key: str, value: bytes) -> None:
        await self._link.ask(lambda: self._client.set(PREFIX + key, value, px=self._ttl_ms))

    async def delete(self, key: str) -> None:
        await self._link.ask(lambda: self._client.unlink(PREFIX + key))

    async def clear(self) -> int | None:
        """How many entries were removed; None if Redis did not answer to the end."""
        num_removed, cursor = 0, None
        while cursor != 0:
            page = await self._scan(cursor or 0)
            if page is None:
                return None
            cursor, keys = page
            removed = await self._unlink(keys)
            if removed is None:
                return None
            num_removed += removed
        return num_removed

    async def size(self) -> tuple[int, int] | None:
        """Entries, and bytes of keys and values; None if Redis did not answer to the end."""
        num_entries, num_bytes, cursor = 0, 0, None
        while cursor != 0:
            page = await self._scan(cursor or 0)
            if page is None:
                return None
            cursor, keys = page
            pipeline = self._client.pipeline(transaction=False)
            for key in keys:
                pipeline.strlen(key)
            lengths = await self._link.ask(pipeline.execute)
            if lengths is None:
                return None
            num_entries += len(keys)
            num_bytes += sum(map(len, keys)) + sum(lengths)
        return num_entries, num_bytes

    def size_now(self) -> None:
        """Not known without asking."""

    async def close(self) -> None:
        await self._link.close()

    async def _unlink(self, keys: list[bytes]) -> int | None:
        removed: int | None = await self._link.ask(lambda: self._client.unlink(*keys)) if keys else 0
        return removed

    async def _scan(self, cursor: int) -> tuple[int, list[bytes]] | None:
        """The next cursor, 0 at the end, and some of our keys."""
        page: tuple[int, list[bytes]] | None = await self._link.ask(
            lambda: self._client.scan(cursor, match=PREFIX + "*", count=SCAN_COUNT)
        )
        return page
