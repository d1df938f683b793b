"""Caches of vectors between requests: in process, or in layers.

A cache may lose any value at any time, and never raises because of its store. Values are float32 `[dim]`.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

from service.model.arrays import Vectors
from service.monitoring.metrics import Kind, Metrics


class VectorCache(Protocol):
    """A cache of vectors. Its methods never raise because of the store."""

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


class MemoryVectorCache:
    """Keeps the `max_entries` most recently used vectors in this process."""

    def __init__(self, max_entries: int, metrics: Metrics, kind: Kind = "text") -> None:
        """Keep vectors of labels, or of images: lookups are counted by kind."""
        self._max_entries = max_entries
        self._looked_up = partial(metrics.looked_up, kind=kind)
        self._vectors: OrderedDict[str, Vectors] = OrderedDict()

    async def check(self) -> None:
        """See `VectorCache`. Has no effect."""

    async def get_many(self, keys: Sequence[str], *, dim: int) -> list[Vectors | None]:
        """See `VectorCache`. Does not yield to the event loop."""
        found = [self._get(key, dim) for key in keys]
        hits = sum(vector is not None for vector in found)
        self._looked_up("memory", "hit", hits)
        self._looked_up("memory", "miss", len(keys) - hits)
        return found

    async def set_many(self, items: Mapping[str, Vectors]) -> None:
        """See `VectorCache`. Does not yield to the event loop."""
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


class LayeredVectorCache:
    """Puts a near cache before a far one; vectors found in the far cache are copied to the near one."""

    def __init__(self, near: VectorCache, far: VectorCache) -> None:
        self._near = near
        self._far = far

    async def check(self) -> None:
        """Check both."""
        await self._near.check()
        await self._far.check()

    async def get_many(self, keys: Sequence[str], *, dim: int) -> list[Vectors | None]:
        """See `VectorCache`; asks the far cache once, for the keys that the near cache lacks."""
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
        """See `VectorCache`; stores the items in the near cache before yielding to the event loop."""
        await self._near.set_many(items)
        await self._far.set_many(items)

    async def close(self) -> None:
        """Close both."""
        await self._far.close()
        await self._near.close()
