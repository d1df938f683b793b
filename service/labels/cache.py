"""Caches of class vectors between requests: in process, in Redis, or both.

A cache may lose any value at any time, and never raises because of its store. Values are float32 `[dim]`.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from service.labels.redis_cache import RedisTextCache
from service.model.answer_warnings import AnswerWarning
from service.model.arrays import Vectors
from service.monitoring.metrics import Metrics
from service.settings import Settings


class TextCache(Protocol):
    """A cache of class vectors. Its methods never raise because of the store."""

    async def check(self) -> None:
        """Check the store at start-up; report its state in the log and the metrics."""
        ...

    async def get_many(self, keys: Sequence[str], *, dim: int) -> list[Vectors | None]:
        """Look up all keys; return None for values that are missing, or no unit vector float32 `[dim]`.

        Callers must not modify the vectors.
        """
        ...

    async def set_many(self, items: Mapping[str, Vectors]) -> None:
        """Store all items, as far as the store can."""
        ...

    async def close(self) -> None:
        """Close connections."""
        ...


class MemoryTextCache:
    """Keeps the `max_entries` most recently used vectors in this process."""

    def __init__(self, max_entries: int, metrics: Metrics) -> None:
        self._max_entries = max_entries
        self._metrics = metrics
        self._vectors: OrderedDict[str, Vectors] = OrderedDict()

    async def check(self) -> None:
        """See `TextCache`. Has no effect."""

    async def get_many(self, keys: Sequence[str], *, dim: int) -> list[Vectors | None]:
        """See `TextCache`. Does not yield to the event loop."""
        found = [self._get(key, dim) for key in keys]
        hits = sum(vector is not None for vector in found)
        self._metrics.looked_up("memory", "hit", hits)
        self._metrics.looked_up("memory", "miss", len(keys) - hits)
        return found

    async def set_many(self, items: Mapping[str, Vectors]) -> None:
        """See `TextCache`. Does not yield to the event loop."""
        for key, vector in items.items():
            # A row would keep its whole array in memory.
            kept = vector.copy() if vector.base is not None else vector
            kept.flags.writeable = False
            self._vectors[key] = kept
            self._vectors.move_to_end(key)
        while len(self._vectors) > self._max_entries:
            self._vectors.popitem(last=False)

    async def close(self) -> None:
        """Drop all vectors."""
        self._vectors.clear()

    def _get(self, key: str, dim: int) -> Vectors | None:
        vector = self._vectors.get(key)
        if vector is None or vector.shape != (dim,):
            return None
        self._vectors.move_to_end(key)
        return vector


class LayeredTextCache:
    """Puts a near cache before a far one; vectors found in the far cache are copied to the near one."""

    def __init__(self, near: TextCache, far: TextCache) -> None:
        self._near = near
        self._far = far

    async def check(self) -> None:
        """Check both."""
        await self._near.check()
        await self._far.check()

    async def get_many(self, keys: Sequence[str], *, dim: int) -> list[Vectors | None]:
        """See `TextCache`; asks the far cache once, for the keys that the near cache lacks."""
        found = await self._near.get_many(keys, dim=dim)
        absent = [index for index, vector in enumerate(found) if vector is None]
        if absent:
            far = await self._far.get_many([keys[index] for index in absent], dim=dim)
            fetched = {index: vector for index, vector in zip(absent, far, strict=True) if vector is not None}
            for index, vector in fetched.items():
                found[index] = vector
            await self._near.set_many({keys[index]: vector for index, vector in fetched.items()})
        return found

    async def set_many(self, items: Mapping[str, Vectors]) -> None:
        """See `TextCache`; stores the items in the near cache before yielding to the event loop."""
        await self._near.set_many(items)
        await self._far.set_many(items)

    async def close(self) -> None:
        """Close both."""
        await self._far.close()
        await self._near.close()


class KnownMatrix(NamedTuple):
    """A label matrix, float32 `[labels, dim]`, and the warnings about its labels."""

    vectors: Vectors
    warnings: tuple[AnswerWarning, ...] = ()


class MatrixCache:
    """Keeps the most recently used label matrices, float32 `[labels, dim]`, up to `max_bytes`.

    Their warnings are kept with them and not counted: they are few, and bounded.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._matrices: OrderedDict[bytes, KnownMatrix] = OrderedDict()

    def get(self, digest: bytes) -> KnownMatrix | None:
        """Look up a matrix."""
        matrix = self._matrices.get(digest)
        if matrix is not None:
            self._matrices.move_to_end(digest)
        return matrix

    def put(self, digest: bytes, matrix: Vectors, warnings: tuple[AnswerWarning, ...] = ()) -> None:
        """Store a matrix, made read-only; evict the least recently used ones if needed."""
        if digest in self._matrices or matrix.nbytes > self._max_bytes:
            return
        matrix.flags.writeable = False
        self._matrices[digest] = KnownMatrix(matrix, warnings)
        self._bytes += matrix.nbytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._matrices.popitem(last=False)[1].vectors.nbytes


def open_text_cache(settings: Settings, metrics: Metrics) -> TextCache:
    """Create the cache of the settings: memory, with Redis behind it if `redis_url` is set.

    Does not connect. An unreachable Redis does not prevent the start: `TextCache.check` only reports it.
    """
    memory = MemoryTextCache(settings.cache_max_entries, metrics)
    if settings.redis_url is None:
        return memory
    password = settings.redis_password
    redis = RedisTextCache(
        settings.redis_url.get_secret_value(),
        metrics,
        password=None if password is None else password.get_secret_value(),
        timeout_s=settings.redis_timeout_ms / 1_000,
        retry_s=settings.redis_retry_s,
        ttl_s=settings.cache_ttl_s,
        max_connections=settings.redis_max_connections,
    )
    return LayeredTextCache(memory, redis)
