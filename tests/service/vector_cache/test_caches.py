import numpy as np
import pytest

from service.monitoring.metrics import Metrics
from service.vector_cache.caches import LayeredVectorCache, MemoryVectorCache
from tests.support.vectors import DIM, lists, vector


async def test_memory_keeps_what_was_used_last() -> None:
    """The least recently used entry is evicted."""
    cache = MemoryVectorCache(2, Metrics())
    await cache.set_many({"a": vector(1), "b": vector(2)})
    await cache.get_many(["a"], dim=DIM)
    await cache.set_many({"c": vector(3)})
    assert lists(await cache.get_many(["a", "b", "c"], dim=DIM)) == lists([vector(1), None, vector(3)])


async def test_memory_holds_no_larger_array_alive() -> None:
    """A row is kept as a read-only copy."""
    cache = MemoryVectorCache(2, Metrics())
    await cache.set_many({"a": np.ones((100, DIM), np.float32)[3]})
    (kept,) = await cache.get_many(["a"], dim=DIM)
    assert kept is not None
    assert kept.base is None
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 2


async def test_memory_answers_only_vectors_of_the_right_length() -> None:
    """A vector of another model's dimension is a miss."""
    cache = MemoryVectorCache(2, Metrics())
    await cache.set_many({"a": vector()})
    assert await cache.get_many(["a"], dim=DIM + 1) == [None]


async def test_layers_ask_the_far_cache_only_for_what_is_not_near_and_keep_it() -> None:
    """Vectors found in the far cache come from the near one the next time."""
    metrics = Metrics()
    near, far = MemoryVectorCache(10, metrics), MemoryVectorCache(10, Metrics())
    await near.set_many({"a": vector(1)})
    await far.set_many({"a": vector(9), "b": vector(2)})
    layered = LayeredVectorCache(near, far)
    expected = lists([vector(1), vector(2), None])
    assert lists(await layered.get_many(["a", "b", "c"], dim=DIM)) == expected
    assert lists(await near.get_many(["a", "b", "c"], dim=DIM)) == expected
