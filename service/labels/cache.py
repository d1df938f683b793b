"""Where class vectors are kept between requests: in process, in Redis, or in both.

A cache is disposable: it may lose anything at any time, and no failure of one ever leaves it. Values are float32
`[dim]`.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from service.labels.redis_cache import RedisTextCache
from service.monitoring.metrics import Metrics
from service.settings import Settings

Vector: TypeAlias = npt.NDArray[np.float32]
Matrix: TypeAlias = npt.NDArray[np.float32]


class TextCache(Protocol):
    """A store of class vectors. Its methods never raise on account of the store."""

    async def check(self) -> None:
        """Look at the store at the start, for the log and the metrics to say how it stands."""
        ...

    async def get_many(self, keys: Sequence[str], *, dim: int) -> list[Vector | None]:
        """Look up all keys; None for what is not there or is not float32 `[dim]` and finite. Not to be changed."""
        ...

    async def set_many(self, items: Mapping[str, Vector]) -> None:
        """Keep all items, as far as the store can."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class MemoryTextCache:
    """The last `max_entries` vectors used, in this process."""

    def __init__(self, max_entries: int, metrics: Metrics) -> None:
        self._max_entries = max_entries
        self._metrics = metrics
        self._vectors: OrderedDict[str, Vector] = OrderedDict()

    async def check(self) -> None:
        """See `TextCache`. There is nothing to look at."""

    async def get_many(self, keys: Sequence[str], *, dim: int) -> list[Vector | None]:
        """See `TextCache`. Does not give the event loop away."""
        found = [self._get(key, dim) for key in keys]
        hits = sum(vector is not None for vector in found)
        self._metrics.looked_up("memory", "hit", hits)
        self._metrics.looked_up("memory", "miss", len(keys) - hits)
        return found

    async def set_many(self, items: Mapping[str, Vector]) -> None:
        """See `TextCache`. Does not give the event loop away."""
        for key, vector in items.items():
            # A row of a larger array would keep the whole of it alive.
            kept = vector.copy() if vector.base is not None else vector
            kept.flags.writeable = False
            self._vectors[key] = kept
            self._vectors.move_to_end(key)
        while len(self._vectors) > self._max_entries:
            self._vectors.popitem(last=False)

    async def close(self) -> None:
        """Forget everything."""
        self._vectors.clear()

    def _get(self, key: str, dim: int) -> Vector | None:
        vector = self._vectors.get(key)
        if vector is None or vector.shape != (dim,):
            return None
        self._vectors.move_to_end(key)
        return vector


class LayeredTextCache:
    """A near cache before a far one: what is found far away is kept near."""

    def __init__(self, near: TextCache, far: TextCache) -> None:
        self._near = near
        self._far = far

    async def check(self) -> None:
        """Look at both."""
        await self._near.check()
        await self._far.check()

    async def get_many(self, keys: Sequence[str], *, dim: int) -> list[Vector | None]:
        """See `TextCache`; asks the far cache only for what is not near, all at once."""
        found = await self._near.get_many(keys, dim=dim)
        absent = [index for index, vector in enumerate(found) if vector is None]
        if absent:
            far = await self._far.get_many([keys[index] for index in absent], dim=dim)
            fetched = {index: vector for index, vector in zip(absent, far, strict=True) if vector is not None}
            for index, vector in fetched.items():
                found[index] = vector
            await self._near.set_many({keys[index]: vector for index, vector in fetched.items()})
        return found

    async def set_many(self, items: Mapping[str, Vector]) -> None:
        """See `TextCache`; the near cache has the items before the event loop is given away."""
        await self._near.set_many(items)
        await self._far.set_many(items)

    async def close(self) -> None:
        """Close both."""
        await self._far.close()
        await self._near.close()


class MatrixCache:
    """Whole label matrices, float32 `[labels, dim]`, the last used up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._matrices: OrderedDict[bytes, Matrix] = OrderedDict()

    def get(self, digest: bytes) -> Matrix | None:
        """Look up a matrix."""
        matrix = self._matrices.get(digest)
        if matrix is not None:
            self._matrices.move_to_end(digest)
        return matrix

    def put(self, digest: bytes, matrix: Matrix) -> None:
        """Keep a matrix; the one unused for longest makes room."""
        if digest in self._matrices or matrix.nbytes > self._max_bytes:
            return
        matrix.flags.writeable = False
        self._matrices[digest] = matrix
        self._bytes += matrix.nbytes
        while self._bytes > self._max_bytes:
            self._bytes -= self._matrices.popitem(last=False)[1].nbytes


def open_text_cache(settings: Settings, metrics: Metrics) -> TextCache:
    """Make the cache that the settings ask for: memory, with Redis behind it where there is a `redis_url`.

    Nothing is connected yet, and a Redis that is away is no reason not to start: `TextCache.check` only tells.
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
