"""Limits the request rate of each client by the generic cell rate algorithm (GCRA), in process or shared over Redis.

A client has a burst of requests that refills at a constant rate; the only state is the time at which it will be full.
With Redis one limit holds for all processes. While Redis is unavailable each process limits on its own: no request
fails, but a client may reach its rate once in every process.

The library `limits` is not used: it refuses redis-py 8, and its windows give no exact `Retry-After`.
"""

import asyncio
import hashlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, cast

from service.monitoring.metrics import Metrics
from service.redis_client import Breaker, diagnose, redis_client, redis_timed_out
from service.settings import Settings

_LOG: Final = logging.getLogger(__name__)

_MAX_CLIENTS: Final = 65_536
"""Clients remembered in process; the least recently seen are forgotten first."""

_MICRO: Final = 1_000_000

_SCRIPT: Final = """
local now = redis.call('TIME')
now = now[1] * 1000000 + now[2]
local interval, burst = tonumber(ARGV[1]), tonumber(ARGV[2])
local full = math.max(tonumber(redis.call('GET', KEYS[1]) or 0) or 0, now)
-- A clock that was set back must not lock a client out.
full = math.min(full, now + interval * burst)
local wait = full + interval - now - interval * burst
if wait > 0 then
    return {0, string.format('%.0f', wait), string.format('%.0f', full - now)}
end
full = full + interval
redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000) + 1)
return {1, '0', string.format('%.0f', full - now)}
"""
"""`LocalLimiter.ask` in microseconds, on Redis' clock."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Allows `rate_per_s` requests a second, and up to `burst` at once."""

    rate_per_s: float
    burst: int

    @property
    def interval_s(self) -> float:
        """Return the seconds until one more request is allowed."""
        return 1 / self.rate_per_s

    @property
    def window_s(self) -> float:
        """Return the seconds in which an empty burst refills."""
        return self.burst / self.rate_per_s


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision about one request.

    Attributes:
        remaining: requests that may follow at once.
        retry_after_s: seconds to wait; 0 if the request is allowed.
        full_s: seconds until the whole burst is available again.
    """

    allowed: bool
    remaining: int
    retry_after_s: float
    full_s: float


class Limiter(Protocol):
    """Counts the requests of each client."""

    @property
    def limit(self) -> RateLimit:
        """Return the limit of each client."""
        ...

    async def ask(self, client: str) -> Verdict:
        """Count a request of `client` if it is allowed. Never raises because of a store."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class LocalLimiter:
    """Counts in this process."""

    def __init__(self, limit: RateLimit, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    async def ask(self, client: str) -> Verdict:
        """See `Limiter`. Never yields to the event loop."""
        now = self._clock()
        full_at = max(self._full_at.get(client, now), now)
        wait = full_at + self.limit.interval_s - now - self.limit.window_s
        # Sums of intervals are inexact: a request that is early by a rounding error is allowed.
        if wait > self.limit.interval_s * 1e-6:
            return _verdict(self.limit, retry_after_s=wait, full_s=full_at - now)
        full_at += self.limit.interval_s
        self._full_at[client] = full_at
        self._full_at.move_to_end(client)
        if len(self._full_at) > _MAX_CLIENTS:
            self._full_at.popitem(last=False)
        return _verdict(self.limit, retry_after_s=0.0, full_s=full_at - now)

    async def close(self) -> None:
        """Forget all clients."""
        self._full_at.clear()


class RedisLimiter:
    """Counts in Redis for all processes, and in this process if Redis does not answer within `timeout_s`."""

    def __init__(
        self,
        url: str,
        limit: RateLimit,
        metrics: Metrics,
        *,
        password: str | None = None,
        prefix: str = "anyclass:v1:",
        timeout_s: float = 0.02,
        retry_s: float = 1.0,
        max_connections: int = 16,
    ) -> None:
        """Connect lazily; the arguments are those of `RedisVectorCache`."""
        self.limit = limit
        self._metrics = metrics
        self._prefix = f"{prefix}rate:"
        self._timeout_s = timeout_s
        self._link = Breaker(retry_s)
        self._local = LocalLimiter(limit)
        self._client = redis_client(url, password=password, max_connections=max_connections)
        self._script = self._client.register_script(_SCRIPT)

    async def ask(self, client: str) -> Verdict:
        """See `Limiter`."""
        # Counted here too, or every client would get a whole burst when Redis fails.
        local = await self._local.ask(client)
        if not self._link.allows():
            self._metrics.rate_limit_fallbacks.inc()
            return local
        key = self._prefix + hashlib.sha256(client.encode("utf-8", "replace")).hexdigest()[:32]
        was_closed = self._link.closed
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._script(keys=[key], args=[round(self.limit.interval_s * _MICRO), self.limit.burst])
            allowed, wait, full = (int(cast("bytes", each)) for each in answer)
        except Exception as exc:  # noqa: BLE001 - no failure of Redis may fail a request
            _LOG.debug("rate limit over Redis failed: %s", type(exc).__name__)
            self._link.failed()
            redis_timed_out.set(True)
            if was_closed and not self._link.closed:
                what = diagnose(exc)[1]
                _LOG.warning("Redis %s; each process limits the rate on its own until it answers", what)
            self._metrics.rate_limit_fallbacks.inc()
            return local
        self._link.succeeded()
        if not was_closed:
            _LOG.info("Redis answers again; the rate is limited for all processes together")
        # A refused request always has to wait, if only a microsecond.
        retry_after_s = 0.0 if allowed else max(wait, 1) / _MICRO
        return _verdict(self.limit, retry_after_s=retry_after_s, full_s=full / _MICRO)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


def open_limiter(settings: Settings, metrics: Metrics) -> Limiter | None:
    """Return the limiter that the settings describe, over Redis if it is set; None if no limit is set."""
    if settings.rate_limit_per_s is None:
        return None
    limit = RateLimit(
        settings.rate_limit_per_s, settings.rate_limit_burst or max(1, math.ceil(settings.rate_limit_per_s))
    )
    if settings.redis_url is None:
        return LocalLimiter(limit)
    password = settings.redis_password
    return RedisLimiter(
        settings.redis_url.get_secret_value(),
        limit,
        metrics,
        password=None if password is None else password.get_secret_value(),
        prefix=settings.cache_prefix,
        timeout_s=settings.redis_timeout_ms / 1_000,
        retry_s=settings.redis_retry_s,
        max_connections=settings.redis_max_connections,
    )


def _verdict(limit: RateLimit, *, retry_after_s: float, full_s: float) -> Verdict:
    remaining = math.floor((limit.window_s - full_s) * limit.rate_per_s + 1e-6)
    return Verdict(not retry_after_s, max(0, min(remaining, limit.burst)), retry_after_s, full_s)
