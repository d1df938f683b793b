"""A text cache in Redis: every failure counts as a miss.

A value is the last 16 characters of its key, then little-endian float32 `[dim]`. Both are checked after reading: the
vector must have unit length, and belong to this key, not to that of another request or label. `labels/cache_keys.py`
has the format's version in every key. A failing or slow Redis costs a request at most `timeout_s`. After a few failures
in a row, Redis is tried only every `retry_s`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar, cast

import numpy as np
from redis.exceptions import ResponseError

from service.model.arrays import STORED_FLOAT32, Vectors, of_unit_length
from service.monitoring.metrics import Kind, Metrics, Operation
from service.redis_client import Breaker, diagnose, redis_client, redis_timed_out

T = TypeVar("T")

_LOG: Final = logging.getLogger(__name__)

_CHUNK: Final = 1_000
"""Keys per command: enough to make round trips cheap, few enough not to delay other clients of Redis."""

_MARK_BYTES: Final = 16
"""Bytes of the key before a vector."""
_CHECK_S: Final = 1.0
"""Timeout of the check at start-up."""
_WRITE_TIMEOUT_FACTOR: Final = 10
"""Writes may take this many times longer than reads, because no request waits for them."""


class RedisVectorCache:
    """A `VectorCache` in Redis."""

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
        """Create a cache that connects on first use.

        Args:
            url: `redis://`, `rediss://` or `unix://`.
            password: used if the URL has none.
            timeout_s: for one read, connecting included.
            retry_s: interval between attempts after Redis has failed.
            ttl_s: lifetime of a value.
            max_connections: further commands wait for a free connection.
        """
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._ttl_s = ttl_s
        self._link = Breaker(retry_s)
        self._writes = Breaker(retry_s)  # a full or read-only Redis still answers reads
        self._client = redis_client(url, password=password, max_connections=max_connections)
        metrics.cache_up.set(1)

    async def check(self) -> None:
        """See `VectorCache`. If Redis cannot be reached, it is tried again only every `retry_s`."""
        try:
            async with asyncio.timeout(_CHECK_S):
                await self._client.ping()
        except ResponseError:
            pass  # it answers; this user may just lack the permission to ping
        except Exception as exc:  # noqa: BLE001 - a failing cache must not prevent the start
            self._turn(partial(self._link.failed, at_once=True), diagnose(exc)[1])

    async def get_many(self, keys: Sequence[str], *, dim: int, kind: Kind = "text") -> list[Vectors | None]:
        """See `VectorCache`. Stops at the first failure, so at most one timeout is spent. Counts lookups of a kind."""
        found: list[Vectors | None] = []
        invalid = 0
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            values = await self._read(chunk)
            if values is None:
                break
            decoded = _decode(chunk, values, dim)
            present = sum(value is not None for value in values)
            invalid += present - sum(vector is not None for vector in decoded)
            found += decoded
        hits = sum(vector is not None for vector in found)
        self._metrics.looked_up("redis", "hit", hits, kind=kind)
        self._metrics.looked_up("redis", "miss", len(keys) - hits - invalid, kind=kind)
        self._metrics.looked_up("redis", "invalid", invalid, kind=kind)
        return found + [None] * (len(keys) - len(found))

    async def set_many(self, items: Mapping[str, Vectors]) -> None:
        """See `VectorCache`. Sends one pipeline per thousand items."""
        entries = list(items.items())
        for start in range(0, len(entries), _CHUNK):
            if not await self._write(entries[start : start + _CHUNK]):
                return

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _read(self, keys: Sequence[str]) -> list[bytes | None] | None:
        if redis_timed_out.get() or not self._link.allows():
            self._metrics.cache_failed("read", "skipped")
            return None
        return await self._guard(
            "read", self._timeout_s, cast("Awaitable[list[bytes | None]]", self._client.mget(keys))
        )

    async def _write(self, entries: Sequence[tuple[str, Vectors]]) -> bool:
        if not (self._link.allows() and self._writes.allows()):
            self._metrics.cache_failed("write", "skipped")
            return False
        pipeline = self._client.pipeline(transaction=False)
        for key, vector in entries:
            pipeline.set(key, _mark(key) + vector.astype(STORED_FLOAT32, copy=False).tobytes(), ex=self._ttl_s)
        done = await self._guard("write", self._timeout_s * _WRITE_TIMEOUT_FACTOR, pipeline.execute())
        if done is not None:
            self._writes.succeeded()
        return done is not None

    async def _guard(self, operation: Operation, timeout_s: float, command: Awaitable[T]) -> T | None:
        """Await a command; count any failure and return None. An interrupted connection is closed."""
        began = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                result = await command
        except Exception as exc:  # noqa: BLE001 - a failing cache must not fail a request
            error = exc
        else:
            self._turn(self._link.succeeded)
            return result
        finally:
            self._metrics.cache_seconds.labels(operation).observe(time.perf_counter() - began)
        reason, what = diagnose(error)
        self._metrics.cache_failed(operation, reason)
        # Log only the error's type: its message may contain keys or an address with credentials.
        _LOG.debug("text cache %s failed: %s", operation, type(error).__name__)
        if operation == "write" and isinstance(error, ResponseError):
            self._writes.failed()
            self._turn(self._link.succeeded)  # Redis did answer
        else:
            self._turn(self._link.failed, what)
        return None

    def _turn(self, event: Callable[[], None], what: str = "") -> None:
        """Apply `event` to the link breaker and log its change; `what` is the predicate of the sentence about Redis."""
        before = self._link.closed
        event()
        after = self._link.closed
        if before and not after:
            _LOG.warning("Redis %s; class vectors are computed without it until it answers", what)
        elif after and not before:
            _LOG.info("Redis answers again")
        self._metrics.cache_up.set(after)


def _mark(key: str) -> bytes:
    return key[-_MARK_BYTES:].encode().rjust(_MARK_BYTES)


class ImagesInRedis:
    """Images in a `RedisVectorCache` that labels are kept in too, by the same connections; closes nothing."""

    def __init__(self, redis: RedisVectorCache) -> None:
        self._redis = redis

    async def check(self) -> None:
        """See `VectorCache`. Has no effect."""

    async def get_many(self, keys: Sequence[str], *, dim: int) -> list[Vectors | None]:
        """See `VectorCache`."""
        return await self._redis.get_many(keys, dim=dim, kind="image")

    async def set_many(self, items: Mapping[str, Vectors]) -> None:
        """See `VectorCache`."""
        await self._redis.set_many(items)

    async def close(self) -> None:
        """See `VectorCache`. Has no effect."""


def _decode(keys: Sequence[str], values: Sequence[bytes | None], dim: int) -> list[Vectors | None]:
    """Decode values that have their key's mark and a unit vector, float32 `[dim]`; return None for any other."""
    found: list[Vectors | None] = [None] * len(values)
    form = np.dtype([("mark", np.uint64, (_MARK_BYTES // 8,)), ("vector", STORED_FLOAT32, (dim,))])
    sized = [index for index, value in enumerate(values) if value is not None and len(value) == form.itemsize]
    rows = np.frombuffer(b"".join(values[index] or b"" for index in sized), form)
    marks = np.frombuffer(b"".join([_mark(keys[index]) for index in sized]), np.uint64).reshape(-1, _MARK_BYTES // 8)
    matrix: Vectors = rows["vector"].astype(np.float32, copy=False)
    for position in np.flatnonzero(of_unit_length(matrix) & (rows["mark"] == marks).all(axis=1)).tolist():
        found[sized[position]] = matrix[position]
    return found
