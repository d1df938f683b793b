"""Redis connections, error diagnosis and a circuit breaker, for the text cache, the rate limits and the state store."""

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.monitoring.metrics import Failure

redis_timed_out: Final[ContextVar[bool]] = ContextVar("redis_timed_out", default=False)
"""Set once Redis has failed or timed out in the current request, so that the request does not wait for it again."""

_FAILURES_TO_OPEN: Final = 3


def redis_client(url: str, *, password: str | None, max_connections: int) -> Redis:
    """Return a client that connects on first use, without retries; callers set their own timeouts.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        password: used if the URL has none.
        max_connections: further callers wait for a free connection.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=None,  # callers' timeouts include the wait for a connection
        protocol=2,
        decode_responses=False,
        driver_info=None,  # the default reads the package's metadata from disk, on the event loop, for each connection
        retry=Retry(NoBackoff(), 0),
        **({} if password is None else {"password": password}),
    )
    return Redis.from_pool(pool)


def diagnose(error: Exception) -> tuple[Failure, str]:
    """Return the failure's kind for the metrics, and the predicate of a log sentence about Redis.

    Neither quotes the error's own text, which may contain keys or an address with credentials.
    """
    match error:
        case TimeoutError() | RedisTimeoutError():
            return "timeout", "does not answer in time"
        case AuthenticationError() | AuthorizationError():  # subclasses of ConnectionError in redis-py
            return "refused", "refuses the password"
        case BusyLoadingError():
            return "refused", "is still loading its data"
        case ResponseError():
            return "refused", f"answers with an error ({type(error).__name__})"
        case _:
            return "connection", "cannot be reached"


class Breaker:
    """A circuit breaker: opens after `_FAILURES_TO_OPEN` failures in a row, then allows one attempt every `retry_s`."""

    def __init__(self, retry_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._retry_s = retry_s
        self._clock = clock
        self._failures = 0
        self._next_attempt = 0.0

    @property
    def closed(self) -> bool:
        """Return whether attempts are unrestricted."""
        return self._failures < _FAILURES_TO_OPEN

    def allows(self) -> bool:
        """Return whether to try now. While open, returning True uses up the attempt of the current interval."""
        if self.closed:
            return True
        now = self._clock()
        if now < self._next_attempt:
            return False
        self._next_attempt = now + self._retry_s
        return True

    def succeeded(self) -> None:
        """Reset the failure count and close."""
        self._failures = 0

    def failed(self, *, at_once: bool = False) -> None:
        """Count a failure; open if that makes enough of them, or if `at_once`."""
        self._failures += _FAILURES_TO_OPEN if at_once else 1
        if not self.closed:
            self._next_attempt = self._clock() + self._retry_s
