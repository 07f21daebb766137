"""Rate limits: what each owner may have in a minute, here and in a Redis that replicas share."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import limits.aio.storage.memory
import pytest
from redis_server import RedisServer, needs_redis_server, running_redis

from pocketlm.errors import ConfigError, RateLimited
from pocketlm.server import redis_link
from pocketlm.server.rate_limits import RateLimits


class Clock:
    """The clock of the counters in this process, which stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 6_000_000_030.0  # the middle of a minute
        monkeypatch.setattr(limits.aio.storage.memory, "time", SimpleNamespace(time=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with running_redis(password="s3cret") as server:
        yield server


@pytest.fixture
def redis(redis_server: RedisServer) -> RedisServer:
    with redis_server.client() as client:
        client.flushall()
    return redis_server


def unexpected() -> None:
    pytest.fail("there was an error")


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


async def refusal(taking: Awaitable[dict[str, str]]) -> RateLimited:
    with pytest.raises(RateLimited) as refused:
        await taking
    assert refused.value.status == 429
    return refused.value


def test_without_limits_nothing_is_counted_or_told() -> None:
    async def test() -> None:
        rates = RateLimits(None, None, None, unexpected)
        for _ in range(100):
            assert await rates.take_request("ann") == await rates.take_tokens("ann", 10**9) == {}

    run(test)


def test_requests_over_the_limit_are_refused_with_the_time_to_wait(clock: Clock) -> None:
    async def test() -> None:
        rates = RateLimits(3, None, None, unexpected)
        for left in (2, 1, 0):
            headers = await rates.take_request("ann")
            assert headers["x-ratelimit-limit-requests"] == "3"
            assert headers["x-ratelimit-remaining-requests"] == str(left)
        error = await refusal(rates.take_request("ann"))
        assert "3 requests" in str(error) and error.should_retry is None
        assert error.headers["x-ratelimit-remaining-requests"] == "0"
        # The next minute starts in 30 s; from then on the 3 of this one count less and less.
        assert error.retry_after_s == pytest.approx(30)
        assert "again in 30 s" in str(error)
        clock.now += error.retry_after_s + 0.01
        await rates.take_request("ann")

    run(test)


def test_owners_do_not_share(clock: Clock) -> None:
    async def test() -> None:
        rates = RateLimits(1, None, None, unexpected)
        await rates.take_request("ann")
        await rates.take_request("2001:db8::1")
        await refusal(rates.take_request("ann"))
        await refusal(rates.take_request("2001:db8::1"))

    run(test)


def test_requests_and_tokens_are_counted_apart(clock: Clock) -> None:
    async def test() -> None:
        rates = RateLimits(2, 2, None, unexpected)
        assert set(await rates.take_request("ann")) == {
            "x-ratelimit-limit-requests",
            "x-ratelimit-remaining-requests",
            "x-ratelimit-reset-requests",
        }
        assert (await rates.take_tokens("ann", 2))["x-ratelimit-remaining-tokens"] == "0"
        await rates.take_request("ann")

    run(test)


def test_what_is_refused_is_not_counted(clock: Clock) -> None:
    async def test() -> None:
        rates = RateLimits(None, 100, None, unexpected)
        await rates.take_tokens("ann", 60)
        for _ in range(5):
            error = await refusal(rates.take_tokens("ann", 50))
            assert error.headers["x-ratelimit-remaining-tokens"] == "40"
        assert (await rates.take_tokens("ann", 40))["x-ratelimit-remaining-tokens"] == "0"

    run(test)


def test_more_than_a_whole_minute_allows_is_never_to_be_tried_again(clock: Clock) -> None:
    async def test() -> None:
        error = await refusal(RateLimits(None, 100, None, unexpected).take_tokens("ann", 101))
        assert error.should_retry is False and error.retry_after_s is None
        assert "101 tokens" in str(error) and "lower max_tokens" in str(error)

    run(test)


@pytest.mark.parametrize("first", [1, 40, 100])
@pytest.mark.parametrize("second", [0, 1, 60])
@pytest.mark.parametrize("cost", [1, 50, 100])
def test_who_waits_as_told_gets_through_and_not_much_earlier(
    clock: Clock, first: int, second: int, cost: int
) -> None:
    async def test() -> None:
        rates = RateLimits(None, 100, None, unexpected)
        await rates.take_tokens("ann", first)
        clock.now += 45.0
        if second and first + second <= 100:
            await rates.take_tokens("ann", second)
        try:
            await rates.take_tokens("ann", cost)
        except RateLimited as error:
            assert error.retry_after_s is not None and 1 <= error.retry_after_s <= 120
            start = clock.now
            if error.retry_after_s > 1:
                clock.now = start + error.retry_after_s - 0.1
                await refusal(rates.take_tokens("ann", cost))
            clock.now = start + error.retry_after_s + 0.01
            await rates.take_tokens("ann", cost)

    run(test)


def test_the_reset_header_says_when_all_is_there_again(clock: Clock) -> None:
    async def test() -> None:
        rates = RateLimits(None, 100, None, unexpected)
        headers = await rates.take_tokens("ann", 80)
        seconds = int(headers["x-ratelimit-reset-tokens"].removesuffix("s"))
        assert 60 < seconds <= 90
        clock.now += seconds
        assert (await rates.take_tokens("ann", 1))["x-ratelimit-remaining-tokens"] == "99"

    run(test)


def test_a_burst_at_the_turn_of_the_minute_counts_in_both(clock: Clock) -> None:
    async def test() -> None:
        rates = RateLimits(100, None, None, unexpected)
        clock.now = 6_000_000_059.0
        for _ in range(100):
            await rates.take_request("ann")
        clock.now += 2.0  # a fixed window would allow 100 more
        for _ in range(2):
            await rates.take_request("ann")
        await refusal(rates.take_request("ann"))

    run(test)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://localhost:6379",
        "redis://host:port",
        "redis://localhost/0?no_such_option=1",
        "redis://:s3cret/word@localhost",
        "memory://",
    ],
)
def test_a_wrong_url_stops_the_start_and_is_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match=r"rate_limit_url.*redis://") as refused:
        RateLimits(1, 1, url, unexpected)
    assert "s3cret" not in str(refused.value) and url not in str(refused.value)


def test_without_the_redis_client_the_start_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)  # what makes an import fail
    monkeypatch.delitem(sys.modules, "pocketlm.server.redis_link")
    with pytest.raises(ConfigError, match=r"pip install 'pocketlm\[redis\]'"):
        RateLimits(1, 1, "redis://localhost", unexpected)
    assert RateLimits(1, 1, None, unexpected)


@needs_redis_server
def test_replicas_count_together(redis: RedisServer) -> None:
    async def test() -> None:
        one, two = (RateLimits(5, 1000, redis.url, unexpected) for _ in range(2))
        try:
            left = [
                (await rates.take_request("ann"))["x-ratelimit-remaining-requests"]
                for rates in (one, two, one, two, one)
            ]
            assert left == ["4", "3", "2", "1", "0"]
            for rates in (one, two):
                error = await refusal(rates.take_request("ann"))
                assert error.retry_after_s is not None and 50 < error.retry_after_s <= 60
            await two.take_request("bob")
            await one.take_tokens("ann", 700)
            assert (await two.take_tokens("ann", 200))["x-ratelimit-remaining-tokens"] == "100"
            error = await refusal(one.take_tokens("ann", 200))
            assert error.headers["x-ratelimit-reset-tokens"].endswith("s")
            error = await refusal(one.take_tokens("ann", 2000))
            assert error.should_retry is False
        finally:
            await one.close()
            await two.close()
        with redis.client() as client:
            keys = client.keys()
            assert keys and all(b"pocketlm:rate:" in key for key in keys)
            assert all(0 < client.ttl(key) <= 120 for key in keys)

    run(test)


@needs_redis_server
def test_many_at_once_get_no_more_than_there_is(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        rates = RateLimits(20, None, redis.url, unexpected)
        monkeypatch.setattr(redis_link, "TIMEOUT_S", 10.0)
        asked = await asyncio.gather(*(rates.take_request("ann") for _ in range(60)), return_exceptions=True)
        await rates.close()
        assert sum(isinstance(answer, dict) for answer in asked) == 20
        assert sum(isinstance(answer, RateLimited) for answer in asked) == 40

    run(test)


@needs_redis_server
@pytest.mark.parametrize("harm", ["kill", "pause"])
def test_without_redis_this_process_counts_alone(
    harm: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is gone or only silent; the log tells of it once, and not with the password."""
    errors: list[None] = []
    monkeypatch.setattr(redis_link, "AWAY_S", 0.0)  # ask Redis each time
    caplog.set_level(logging.INFO)

    async def test() -> None:
        rates = RateLimits(2, None, server.url, lambda: errors.append(None))
        await rates.take_request("ann")
        assert not errors
        getattr(server, harm)()
        for left in ("1", "0"):
            headers = await rates.take_request("ann")
            assert headers["x-ratelimit-remaining-requests"] == left
        error = await refusal(rates.take_request("ann"))
        assert error.retry_after_s is not None
        assert len(errors) == 3
        if harm == "kill":
            server.start()
        else:
            server.resume()
        await rates.take_request("bob")
        assert len(errors) == 3
        await rates.close()

    with running_redis(password="s3cret") as server:
        run(test)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert str(server.port) in warnings[0] and "this process alone" in warnings[0]
    assert any("answers again" in record.getMessage() for record in caplog.records)
    assert "s3cret" not in caplog.text


@needs_redis_server
def test_a_redis_that_is_away_is_not_asked_by_every_request() -> None:
    errors: list[None] = []

    async def test() -> None:
        rates = RateLimits(1000, None, server.url, lambda: errors.append(None))
        server.pause()  # each question would take its whole time
        for _ in range(200):
            await rates.take_request("ann")
        server.resume()
        await rates.close()

    with running_redis() as server:
        run(test)
    assert 1 <= len(errors) <= 10


@needs_redis_server
def test_a_wrong_password_is_an_error_and_not_a_failure(redis: RedisServer) -> None:
    errors: list[None] = []

    async def test() -> None:
        url = redis.url.replace("s3cret", "wrong")
        rates = RateLimits(1, None, url, lambda: errors.append(None))
        assert await rates.take_request("ann")
        await refusal(rates.take_request("ann"))
        await rates.close()

    run(test)
    assert errors
