"""Class vectors in Redis, where every trouble is a counted miss.

A value is raw little-endian float32, checked before use. A Redis that fails, is slow or hangs costs a request
`timeout_s` at most; after a few failures in a row it is left alone and tried again every `retry_s`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from service.monitoring.metrics import Metrics, Operation
from service.redis_client import Breaker, connection_pool, diagnose, given_up

T = TypeVar("T")
Vector: TypeAlias = npt.NDArray[np.float32]

_LOG: Final = logging.getLogger(__name__)

_CHUNK: Final = 1_000
"""Keys in one command: enough to make the round trip cheap, few enough not to hold up Redis' other clients."""

_CHECK_S: Final = 1.0
"""The most that a look at Redis may hold up the start."""
_WRITE_PATIENCE: Final = 10
"""Nobody waits for a write, so it may take so many times longer than a read."""

_STORED: Final = np.dtype("<f4")


class RedisTextCache:
    """A `TextCache` in Redis."""

    def __init__(
        self,
        url: str,
        metrics: Metrics,
        *,
        password: str | None = None,
        timeout_s: float = 0.02,
        retry_s: float = 1.0,
        ttl_s: int = 30 * 24 * 3600,
        max_connections: int = 16,
    ) -> None:
        """Connects with the first use.

        Args:
            url: `redis://`, `rediss://` or `unix://`.
            metrics: where hits, misses and failures are counted.
            password: used where the URL has none.
            timeout_s: the most that one failing read may cost, connecting included.
            retry_s: how often a Redis that failed is tried again.
            ttl_s: life of a value.
            max_connections: at most.
        """
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._ttl_s = ttl_s
        self._link = Breaker(retry_s)
        self._writes = Breaker(retry_s)  # a full or read-only Redis still answers reads
        self._pool = connection_pool(url, password=password, most=max_connections)
        self._client: Redis = Redis(connection_pool=self._pool)
        metrics.cache_up.set(1)

    async def check(self) -> None:
        """See `TextCache`. A Redis that is away is left alone from the start, and tried again every `retry_s`."""
        try:
            async with asyncio.timeout(_CHECK_S):
                await self._client.ping()
        except ResponseError:
            pass  # it answers, if only that this user may not ask
        except Exception as exc:  # noqa: BLE001 - nothing that a cache does may stop the start
            self._turn(partial(self._link.failed, at_once=True), diagnose(exc)[1])

    async def get_many(self, keys: Sequence[str], *, dim: int) -> list[Vector | None]:
        """See `TextCache`. Stops at the first failure, so only one time limit can be lost."""
        found: list[Vector | None] = []
        invalid = 0
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            values = await self._read(chunk)
            if values is None:
                break
            decoded = _decode(values, dim)
            present = sum(value is not None for value in values)
            invalid += present - sum(vector is not None for vector in decoded)
            found += decoded
        hits = sum(vector is not None for vector in found)
        self._metrics.looked_up("redis", "hit", hits)
        self._metrics.looked_up("redis", "miss", len(keys) - hits - invalid)
        self._metrics.looked_up("redis", "invalid", invalid)
        return found + [None] * (len(keys) - len(found))

    async def set_many(self, items: Mapping[str, Vector]) -> None:
        """See `TextCache`. One pipeline for each thousand items."""
        entries = list(items.items())
        for start in range(0, len(entries), _CHUNK):
            if not await self._write(entries[start : start + _CHUNK]):
                return

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()
        await self._pool.disconnect()

    async def _read(self, keys: Sequence[str]) -> list[bytes | None] | None:
        if given_up.get() or not self._link.allows():
            self._metrics.cache_failed("read", "skipped")
            return None
        return await self._guard(
            "read", self._timeout_s, cast("Awaitable[list[bytes | None]]", self._client.mget(keys))
        )

    async def _write(self, entries: Sequence[tuple[str, Vector]]) -> bool:
        if not (self._link.allows() and self._writes.allows()):
            self._metrics.cache_failed("write", "skipped")
            return False
        pipeline = self._client.pipeline(transaction=False)
        for key, vector in entries:
            pipeline.set(key, vector.astype(_STORED, copy=False).tobytes(), ex=self._ttl_s)
        done = await self._guard("write", self._timeout_s * _WRITE_PATIENCE, pipeline.execute())
        if done is not None:
            self._writes.succeeded()
        return done is not None

    async def _guard(self, operation: Operation, timeout_s: float, command: Awaitable[T]) -> T | None:
        """Await a command; None, counted, for whatever goes wrong. A connection cut off in its middle is closed."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                result = await command
        except Exception as exc:  # noqa: BLE001 - nothing that a cache does may fail a request
            error = exc
        else:
            self._turn(self._link.succeeded)
            return result
        finally:
            self._metrics.cache_seconds.labels(operation).observe(time.perf_counter() - began)
        reason, what = diagnose(error)
        self._metrics.cache_failed(operation, reason)
        # The kind of error only: a message may quote keys or an address with credentials.
        _LOG.debug("text cache %s failed: %s", operation, type(error).__name__)
        if operation == "write" and isinstance(error, ResponseError):
            self._writes.failed()
            self._turn(self._link.succeeded)  # it did answer
        else:
            self._turn(self._link.failed, what)
        return None

    def _turn(self, event: Callable[[], None], what: str = "") -> None:
        """Let `event` happen to the link; where that opens it, `what` Redis does is in the log."""
        before = self._link.closed
        event()
        after = self._link.closed
        if before and not after:
            _LOG.warning("Redis %s; class vectors are computed without it until it answers", what)
        elif after and not before:
            _LOG.info("Redis answers again")
        self._metrics.cache_up.set(after)


def _decode(values: Sequence[bytes | None], dim: int) -> list[Vector | None]:
    """Take what is float32 `[dim]` and finite; anything else in the store is a miss."""
    found: list[Vector | None] = [None] * len(values)
    sound = [index for index, value in enumerate(values) if value is not None and len(value) == dim * _STORED.itemsize]
    joined = b"".join(values[index] or b"" for index in sound)
    matrix = np.frombuffer(joined, _STORED).astype(np.float32, copy=False).reshape(len(sound), dim)
    for position in np.flatnonzero(np.isfinite(matrix).all(axis=1)).tolist():
        found[sound[position]] = matrix[position]
    return found
