"""MemoryStore: what the response cache keeps in this process, bounded in bytes and in time."""

from __future__ import annotations

from collections.abc import Callable

from cachetools import TTLCache

# Python's share of one entry: the key, the headers of the objects, a place in each of the cache's
# tables. Held against what an interpreter really takes in tests/server/test_memory_store.py.
ENTRY_OVERHEAD_BYTES = 768


class MemoryStore:
    """When it is full, the entries that were not asked for the longest make room."""

    name = "memory"

    def __init__(self, ttl_s: float, max_bytes: int, on_eviction: Callable[[], None]) -> None:
        self._cache = _CountingCache(ttl_s, max_bytes, on_eviction)

    async def start(self) -> None:
        """Nothing to connect to."""

    async def get(self, key: str) -> bytes | None:
        return self._cache.get(key)

    async def put(self, key: str, value: bytes) -> None:
        if _size(value) <= self._cache.maxsize:
            self._cache[key] = value

    async def delete(self, key: str) -> None:
        self._cache.pop(key, None)

    async def clear(self) -> int:
        num_entries = len(self._cache)
        self._cache.clear()
        return num_entries

    async def size(self) -> tuple[int, int]:
        """Entries and bytes."""
        return self.size_now()

    def size_now(self) -> tuple[int, int]:
        return len(self._cache), int(self._cache.currsize)

    async def close(self) -> None:
        self._cache.clear()


class _CountingCache(TTLCache[str, bytes]):
    def __init__(self, ttl_s: float, max_bytes: int, on_eviction: Callable[[], None]) -> None:
        super().__init__(maxsize=max_bytes, ttl=ttl_s, getsizeof=_size)
        self._on_eviction = on_eviction

    def popitem(self) -> tuple[str, bytes]:
        """Called by cachetools to make room, and not for entries whose time is over."""
        item = super().popitem()
        self._on_eviction()
        return item


def _size(value: bytes) -> int:
    return len(value) + ENTRY_OVERHEAD_BYTES
