"""The response cache over both of its stores, and over a Redis that fails in every way."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from redis_server import RedisServer, free_port, needs_redis_server, running_redis

from pocketlm.errors import ConfigError, IdempotencyConflict
from pocketlm.outputs import Completion, FinishReason, RequestOutput
from pocketlm.server import redis_link
from pocketlm.server.cached_answer import CachedAnswer
from pocketlm.server.response_cache import ResponseCache

MEMORY = pytest.param("memory", id="memory")
REDIS = pytest.param("redis", id="redis", marks=needs_redis_server)


class CountedMetrics:
    """Counts what the cache tells its metrics."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Callable[[], None]:
        return lambda: self.seen.update([name.removeprefix("cache_")])


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no reason for a miss, but in the tests of slowness."""
    monkeypatch.setattr(redis_link, "TIMEOUT_S", 10.0)


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with running_redis(password="hunter2") as server:
        yield server


@pytest.fixture
def url(request: pytest.FixtureRequest) -> str | None:
    if request.param == "memory":
        return None
    server = request.getfixturevalue("redis_server")
    with server.client() as client:
        client.flushall()
    return str(server.url)


@asynccontextmanager
async def cache(
    url: str | None = None, *, ttl_s: float = 60.0, max_bytes: int = 1 << 20
) -> AsyncIterator[ResponseCache]:
    cache = ResponseCache(ttl_s, max_bytes, url, CountedMetrics())
    await cache.start()
    try:
        yield cache
    finally:
        await cache.close()


def output(text: str = "answer", finish_reason: FinishReason = FinishReason.STOP) -> RequestOutput:
    return RequestOutput("prompt", [1], [Completion(0, text, [2], 3, finish_reason)])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    for _ in range(1000):
        if await condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen in time")


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await test()

    asyncio.run(whole())


# Both stores


@pytest.mark.parametrize("url", [MEMORY, REDIS], indirect=True)
def test_an_answer_is_kept_and_counted(url: str | None) -> None:
    async def test() -> None:
        async with cache(url) as kept:
            assert await kept.get("a") is None
            await kept.put("a", output())
            assert await kept.get("a") == output() and await kept.get("b") is None
            await kept.put("a", output("newer"))
            assert await kept.get("a") == output("newer")
            kept.bypass()
            stats = await kept.stats()
            num_bytes = stats.pop("bytes")
            assert len(CachedAnswer("a", output()).to_bytes()) < num_bytes < 2000
            assert stats == {
                "backend": "memory" if url is None else "redis",
                "entries": 1,
                "max_bytes": 1 << 20 if url is None else None,
                "ttl_seconds": 60.0,
                "hits": 2,
                "misses": 2,
                "bypasses": 1,
                "errors": 0,
                "evictions": 0,
            }
            assert kept._metrics.seen == {"hit": 2, "miss": 2, "bypass": 1}  # type: ignore[attr-defined]
            assert kept.size_now() == ((1, num_bytes) if url is None else None)

    run(test)


@pytest.mark.parametrize("url", [MEMORY, REDIS], indirect=True)
def test_an_answer_is_gone_after_its_time(url: str | None) -> None:
    async def test() -> None:
        async with cache(url, ttl_s=0.05) as kept:
            await kept.put("a", output())

            async def is_gone() -> bool:
                return await kept.get("a") is None and (await kept.stats())["entries"] == 0

            await until(is_gone)

    run(test)


@pytest.mark.parametrize("url", [MEMORY, REDIS], indirect=True)
@pytest.mark.parametrize("reason", [FinishReason.TIMEOUT, FinishReason.ABORT, FinishReason.ERROR, None])
def test_an_answer_that_was_cut_short_is_not_kept(url: str | None, reason: FinishReason) -> None:
    async def test() -> None:
        async with cache(url) as kept:
            cut = output()
            cut.outputs.append(Completion(1, "", [], 4, reason))
            await kept.put("a", cut)
            await kept.put_idempotent("b", "digest", cut)
            assert await kept.get("a") is None and await kept.get_idempotent("b", "digest") is None

    run(test)


@pytest.mark.parametrize("url", [MEMORY, REDIS], indirect=True)
def test_an_answer_larger_than_the_bound_is_not_kept(url: str | None) -> None:
    async def test() -> None:
        async with cache(url, max_bytes=2000) as kept:
            await kept.put("a", output("x" * 2000))
            await kept.put("b", output("x" * 1000))
            assert await kept.get("a") is None and await kept.get("b") is not None

    run(test)


@pytest.mark.parametrize("url", [MEMORY, REDIS], indirect=True)
def test_clear_removes_everything_and_says_how_many(url: str | None) -> None:
    async def test() -> None:
        async with cache(url, max_bytes=10 << 20) as kept:
            for number in range(2500):  # more than one page of Redis's SCAN
                await kept.put(f"key {number}", output())
            assert (await kept.stats())["entries"] == 2500
            assert await kept.clear() == 2500
            assert await kept.get("key 0") is None and await kept.clear() == 0

    run(test)


@pytest.mark.parametrize("url", [MEMORY, REDIS], indirect=True)
def test_an_idempotency_key_stands_for_one_request(url: str | None) -> None:
    async def test() -> None:
        async with cache(url) as kept:
            assert await kept.get_idempotent("a", "digest") is None
            await kept.put_idempotent("a", "digest", output())
            assert await kept.get_idempotent("a", "digest") == output()
            with pytest.raises(IdempotencyConflict, match="another request"):
                await kept.get_idempotent("a", "another digest")
            stats = await kept.stats()
            assert stats["hits"] == stats["misses"] == 0 and stats["entries"] == 1

    run(test)


def test_evictions_are_counted() -> None:
    async def test() -> None:
        async with cache(max_bytes=2000) as kept:
            for key in "abcdef":
                await kept.put(key, output())
            stats = await kept.stats()
            assert stats["evictions"] == 6 - stats["entries"] > 0 and stats["bytes"] <= 2000

    run(test)


# Redis


@needs_redis_server
def test_replicas_share_answers_and_leave_other_keys_alone(redis_server: RedisServer) -> None:
    async def test() -> None:
        with redis_server.client() as client:
            client.flushall()
            client.set("somebody:else", "1")
            async with cache(redis_server.url) as one, cache(redis_server.url) as other:
                await one.put("a", output())
                assert await other.get("a") == output()
                assert 0 < client.pttl("pocketlm:cache:a") <= 60_000
                assert await other.clear() == 1
                assert await one.get("a") is None
                assert client.get("somebody:else") == b"1"

    run(test)


@needs_redis_server
@pytest.mark.parametrize("value", [b"", b"garbage", CachedAnswer("other", output()).to_bytes()])
def test_a_value_it_did_not_write_is_a_miss_an_error_and_gone(
    redis_server: RedisServer, value: bytes
) -> None:
    async def test() -> None:
        with redis_server.client() as client:
            async with cache(redis_server.url) as kept:
                client.set("pocketlm:cache:a", value)
                assert await kept.get("a") is None
                assert client.exists("pocketlm:cache:a") == 0
                stats = await kept.stats()
                assert (stats["misses"], stats["errors"]) == (1, 1)

    run(test)


@needs_redis_server
def test_a_refusal_is_a_miss_and_redis_is_still_asked(redis_server: RedisServer) -> None:
    async def test() -> None:
        with redis_server.client() as client:
            client.flushall()
            client.rpush("pocketlm:cache:a", "a list, which GET refuses")
            async with cache(redis_server.url) as kept:
                assert await kept.get("a") is None
                await kept.put("a", output())
                assert await kept.get("a") == output()
                assert (await kept.stats())["errors"] == 1

                client.config_set("maxmemory", 1)
                await kept.put("b", output())
                client.config_set("maxmemory", 0)
                assert await kept.get("a") == output() and await kept.get("b") is None
                assert (await kept.stats())["errors"] == 2

    run(test)


@needs_redis_server
def test_redis_that_dies_is_left_alone_and_found_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(redis_link, "AWAY_S", 2.0)
    caplog.set_level(logging.INFO, logger="pocketlm")

    async def test() -> None:
        with running_redis(password="hunter2") as server:
            async with cache(server.url) as kept:
                await kept.put("a", output())
                server.kill()
                assert await kept.get("a") is None
                for _ in range(20):  # nobody asks it
                    assert await kept.get("a") is None
                    await kept.put("a", output())
                assert await kept.clear() is None
                stats = await kept.stats()
                assert (stats["errors"], stats["entries"], stats["bytes"]) == (1, None, None)

                server.start()

                async def is_back() -> bool:
                    await kept.put("a", output())
                    return await kept.get("a") is not None

                await until(is_back)

    run(test)
    [failed, again] = [
        record.message for record in caplog.records if record.name == "pocketlm.server.redis_link"
    ]
    assert "no response cache: Redis at 127.0.0.1:" in failed and "answers again" in again
    assert "hunter2" not in caplog.text


@needs_redis_server
def test_a_slow_redis_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_link, "TIMEOUT_S", 0.25)
    monkeypatch.setattr(redis_link, "AWAY_S", 0.3)

    async def test() -> None:
        with running_redis() as server:
            async with cache(server.url) as kept:
                await kept.put("a", output())
                server.pause()
                answers = await asyncio.gather(*(kept.get("a") for _ in range(50)))
                assert answers == [None] * 50
                server.resume()

                async def is_back() -> bool:
                    return await kept.get("a") == output()

                await until(is_back)
                # A late answer to an earlier question is nobody's answer.
                assert await kept.get("b") is None

                server.pause()  # and then the end: closing does not wait for it
                assert await kept.get("a") is None

    run(test)


@needs_redis_server
def test_a_request_that_is_cancelled_does_not_mix_up_answers(redis_server: RedisServer) -> None:
    async def test() -> None:
        async with cache(redis_server.url) as kept:
            for number in range(20):
                await kept.put(f"key {number}", output(f"answer {number}"))
            for round_number in range(50):
                tasks = [asyncio.create_task(kept.get(f"key {number}")) for number in range(20)]
                for _ in range(round_number % 10):
                    await asyncio.sleep(0)
                for task in tasks[::2]:
                    task.cancel()
                answers = await asyncio.gather(*tasks, return_exceptions=True)
                assert answers[1::2] == [output(f"answer {number}") for number in range(1, 20, 2)]
            assert (await kept.stats())["errors"] == 0

    run(test)


def test_redis_that_is_not_there_at_the_start_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with cache(f"redis://user:hunter2@127.0.0.1:{free_port()}/0") as kept:
            assert await kept.get("a") is None
            assert await kept.clear() is None

    run(test)
    assert "no response cache: Redis at 127.0.0.1:" in caplog.text and "hunter2" not in caplog.text


@contextmanager
def talker(reply: bytes) -> Iterator[int]:
    """A server that is not Redis: it says the same to everyone. Its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(100)
                    connection.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=10)


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$-\xff\r\n", b"*100\r\n-\xff\r\n"]
)
def test_what_is_not_redis_is_a_miss(reply: bytes) -> None:
    async def test() -> None:
        with talker(reply) as port:
            async with cache(f"redis://127.0.0.1:{port}") as kept:
                assert await kept.get("a") is None
                assert (await kept.stats())["errors"] >= 1

    run(test)


@needs_redis_server
def test_a_wrong_password_is_a_warning(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with cache(redis_server.url.replace("hunter2", "s3cret")) as kept:
            await kept.put("a", output())
            assert await kept.get("a") is None

    run(test)
    assert "invalid username-password pair" in caplog.text and "s3cret" not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "http://:hunter2@localhost",
        "redis://:hunter2/3@localhost:1",
        "redis://:1hunter2?3@localhost:1",
        "redis://:12#hunter2@localhost:1",
        "redis://:hunter2@localhost:port",
        "redis://:hunter2@localhost:99999",
        "redis://:hunter2@[localhost",
        "redis://:hunter2@localhost?colour=red",
    ],
)
def test_a_url_that_is_wrong_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match=r"cache_url: .* redis://") as error:
        ResponseCache(60, 1000, url, CountedMetrics())
    assert "hunter2" not in str(error.value)


def test_without_the_client_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    blocked: dict[str, Any] = {"redis": None, "redis.asyncio": None}
    for name, module in blocked.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("redis_store", "redis_link"):
        monkeypatch.delitem(sys.modules, f"pocketlm.server.{name}", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'pocketlm\[redis\]'"):
        ResponseCache(60, 1000, "redis://localhost", CountedMetrics())
