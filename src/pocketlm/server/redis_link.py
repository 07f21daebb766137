"""RedisLink: a Redis that replicas share, and that no answer may ever depend on.

Each call is bounded in time; after a failure nobody asks for a while, so that a dead Redis costs
nothing; the log tells of it once a minute at most, and never with a password.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import urlsplit

from pocketlm.errors import ConfigError
from pocketlm.server.patience import wait_patiently

try:
    import redis.asyncio as redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
except ModuleNotFoundError as error:
    raise ConfigError("a redis:// URL needs the Redis client: pip install 'pocketlm[redis]'") from error

log = logging.getLogger(__name__)

TIMEOUT_S = 0.25  # for one call, connecting included
SOCKET_TIMEOUT_S = 1.0  # where nobody waits, as in closing
AWAY_S = 5.0  # nobody asks for so long after a failure
WARN_EVERY_S = 60.0
MAX_CONNECTIONS = 8

Answer = TypeVar("Answer")


class RedisLink:
    """`setting` is the name of the URL's setting, `loss` what the log says is missing without Redis."""

    def __init__(self, setting: str, url: str, loss: str, on_error: Callable[[], None]) -> None:
        self._address = _address(setting, url)
        self.pool = _pool(setting, url)
        self.client = redis.Redis.from_pool(self.pool)
        self._loss = loss
        self._on_error = on_error
        self._is_failing = False
        self._is_reported = False  # the log says that it is failing
        self._away_until = 0.0
        self._warn_after = 0.0

    async def ask(self, call: Callable[[], Awaitable[Answer]]) -> Answer | None:
        """What the call returns; None if Redis is too slow, refuses, or is not asked just now."""
        now = time.monotonic()
        if now < self._away_until:
            return None
        is_trial = self._is_failing
        if is_trial:
            self._away_until = now + AWAY_S  # this call tries; the others stay away until it is back
        try:
            answer = await wait_patiently(_awaited(call), TIMEOUT_S)
        except Exception as error:  # whatever a client library may raise
            self._failed(error)
            return None
        if is_trial:
            self._answered_again()
        return answer

    async def close(self) -> None:
        await self.client.aclose()

    def _failed(self, error: Exception) -> None:
        self._on_error()
        now = time.monotonic()
        if not isinstance(error, redis.ResponseError):  # a refusal, as of a full Redis, is quick
            self._is_failing, self._away_until = True, now + AWAY_S
        if now >= self._warn_after:
            self._is_reported, self._warn_after = self._is_failing, now + WARN_EVERY_S
            reason = str(error) or type(error).__name__
            log.warning("%s: Redis at %s: %s", self._loss, self._address, reason)

    def _answered_again(self) -> None:
        self._is_failing, self._away_until = False, 0.0
        if self._is_reported:
            self._is_reported = False
            log.info("Redis at %s answers again", self._address)


async def _awaited(call: Callable[[], Awaitable[Answer]]) -> Answer:
    return await call()


def _pool(setting: str, url: str) -> redis.ConnectionPool:
    try:
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=SOCKET_TIMEOUT_S,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            protocol=2,  # connects in fewer steps than 3, and says all we need
            retry=Retry(NoBackoff(), 0),  # to ask again is the next request's turn
        )
        pool.connection_class(**pool.connection_kwargs)  # knows which options of the URL there are
    except (ValueError, TypeError):
        raise _bad_url(setting) from None  # their messages may quote the password
    return pool


def _address(setting: str, url: str) -> str:
    """Where it is, for the log: no user and no password."""
    try:
        parts = urlsplit(url)
        if "@" in parts.path + parts.query + parts.fragment:  # a password that ends the host too early
            raise _bad_url(setting)
        return (
            parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
        )
    except ValueError:
        raise _bad_url(setting) from None


def _bad_url(setting: str) -> ConfigError:
    return ConfigError(
        f"{setting}: not a Redis URL; allowed are redis://[[USER]:PASSWORD@]HOST[:PORT][/DB], rediss://... "
        "and unix://PATH; in a password, percent-encode all but letters and digits"
    )
