"""The store in memory: bounded in bytes, in time, and honest about both."""

from __future__ import annotations

import asyncio
import tracemalloc

from pocketlm.server.memory_store import ENTRY_OVERHEAD_BYTES, MemoryStore


def store(max_bytes: int, ttl_s: float = 60.0) -> tuple[MemoryStore, list[str]]:
    evictions: list[str] = []
    return MemoryStore(ttl_s, max_bytes, lambda: evictions.append("one")), evictions


def test_what_was_not_asked_for_the_longest_makes_room() -> None:
    async def run() -> None:
        kept, evictions = store(max_bytes=3 * (ENTRY_OVERHEAD_BYTES + 10))
        for key in "abc":
            await kept.put(key, bytes(10))
        assert await kept.get("a") == bytes(10)  # asked for: b is the oldest now
        assert kept.size_now() == (3, 3 * (ENTRY_OVERHEAD_BYTES + 10)) and not evictions
        await kept.put("d", bytes(10))
        assert len(evictions) == 1 and await kept.get("b") is None
        assert [await kept.get(key) for key in "acd"] == [bytes(10)] * 3
        await kept.put("e", bytes(3 * 10 + 2 * ENTRY_OVERHEAD_BYTES))  # takes the room of all three
        assert await kept.size() == (1, 3 * (ENTRY_OVERHEAD_BYTES + 10)) and len(evictions) == 4

    asyncio.run(run())


def test_an_entry_larger_than_the_whole_is_not_kept_and_removes_nothing() -> None:
    async def run() -> None:
        kept, evictions = store(max_bytes=ENTRY_OVERHEAD_BYTES + 10)
        await kept.put("a", bytes(10))
        await kept.put("b", bytes(11))
        assert await kept.get("a") == bytes(10) and await kept.get("b") is None and not evictions

    asyncio.run(run())


def test_an_entry_ends_with_its_time_and_that_is_no_eviction() -> None:
    async def run() -> None:
        kept, evictions = store(max_bytes=10_000, ttl_s=0.05)
        await kept.put("a", b"x")
        while kept.size_now() != (0, 0):
            await asyncio.sleep(0.01)
        assert await kept.get("a") is None and not evictions

    asyncio.run(asyncio.wait_for(run(), timeout=10))


def test_clear_and_delete() -> None:
    async def run() -> None:
        kept, _ = store(max_bytes=10_000)
        for key in "abc":
            await kept.put(key, b"x")
        await kept.delete("a")
        await kept.delete("a")
        assert await kept.clear() == 2
        assert kept.size_now() == (0, 0) and await kept.get("b") is None

    asyncio.run(run())


def test_the_bound_is_one_of_real_memory() -> None:
    async def run() -> None:
        max_bytes = 1 << 20
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            kept, evictions = store(max_bytes)
            for number in range(5000):
                await kept.put(f"{number:064x}", bytes(number % 200))
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        _, num_bytes = kept.size_now()
        assert evictions and 0.9 * max_bytes < num_bytes <= max_bytes
        assert after - before <= num_bytes

    asyncio.run(run())
