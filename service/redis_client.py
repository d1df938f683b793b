"""Connections to a Redis, as the text cache, the rate limits and the state use them, and what is wrong with one."""

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.monitoring.metrics import Failure


def connection_pool(url: str, *, password: str | None, most: int) -> BlockingConnectionPool:
    """Return a pool that connects with its first use, and tries nothing twice: who uses it has its own time limit.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        password: used where the URL has none.
        most: connections at the same time; who finds none free waits.
    """
    return BlockingConnectionPool.from_url(
        url,
        max_connections=most,
        timeout=None,  # the time limit around each command counts the wait for a connection too
        protocol=2,
        decode_responses=False,
        driver_info=None,  # else every new connection reads the package's metadata from disk, on the event loop
        retry=Retry(NoBackoff(), 0),
        **({} if password is None else {"password": password}),
    )


def diagnose(error: Exception) -> tuple[Failure, str]:
    """The kind of a failure as the metrics have it, and what Redis does, as the end of a sentence for the log.

    Never the error's own text: it may quote keys, or an address with credentials.
    """
    match error:
        case TimeoutError() | RedisTimeoutError():
            return "timeout", "does not answer in time"
        case AuthenticationError() | AuthorizationError():  # redis-py takes them for troubles of the connection
            return "refused", "refuses the password"
        case BusyLoadingError():
            return "refused", "is still loading its data"
        case ResponseError():
            return "refused", f"answers with an error ({type(error).__name__})"
        case _:
            return "connection", "cannot be reached"


_FAILURES_TO_OPEN: Final = 3


given_up: Final[ContextVar[bool]] = ContextVar("given_up", default=False)
"""Whether this request has already lost its time limit to Redis, elsewhere; then it is not asked again."""


class Breaker:
    """Leaves a failing thing alone: after `_FAILURES_TO_OPEN` failures in a row one attempt every `retry_s`."""

    def __init__(self, retry_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._retry_s = retry_s
        self._clock = clock
        self._failures = 0
        self._next_attempt = 0.0

    @property
    def closed(self) -> bool:
        """Whether all goes well."""
        return self._failures < _FAILURES_TO_OPEN

    def allows(self) -> bool:
        """Whether to try now; while open, a True is the one attempt of this interval."""
        if self.closed:
            return True
        now = self._clock()
        if now < self._next_attempt:
            return False
        self._next_attempt = now + self._retry_s
        return True

    def succeeded(self) -> None:
        """Close."""
        self._failures = 0

    def failed(self, *, at_once: bool = False) -> None:
        """Count a failure; enough of them, or one with `at_once`, open."""
        self._failures += _FAILURES_TO_OPEN if at_once else 1
        if not self.closed:
            self._next_attempt = self._clock() + self._retry_s
