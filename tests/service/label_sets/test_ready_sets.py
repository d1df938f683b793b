import asyncio
from typing import Any

import numpy as np
import pytest

from service.errors import (
    StateUnavailable,
)
from service.label_sets.ready_sets import Heads, ReadySets, ready_set
from service.label_sets.storage import Head, LabelSetStorage, StoredHead
from service.label_sets.storage import VectorsId as Which
from tests.support.classifying import until


def which(name: str, version: str = "1") -> Which:
    """Return an id of class vectors."""
    return Which(name, version, "n")


def test_sets_in_memory_are_bounded_by_bytes() -> None:
    """The least recently used set is evicted; a set above the limit is never kept; old versions are dropped."""

    def make(rows: int) -> Any:
        return ready_set("1", ("x",) * rows, np.zeros((rows, 100), np.float32))

    size = make(10).nbytes
    sets = ReadySets(2 * size)
    for name in ("a", "b"):
        sets.put(which(name), make(10))
    assert sets.get(which("a")) is not None
    sets.put(which("c"), make(10))
    assert [True, False, True] == [sets.get(which(name)) is not None for name in ("a", "b", "c")]
    sets.put(which("large"), make(21))
    assert sets.get(which("large")) is None
    sets.put(which("a", "2"), make(10))
    assert (None, True) == (sets.get(which("a")), sets.get(which("a", "2")) is not None)
    sets.forget("c")
    sets.put(which("d"), make(10))
    assert sets.get(which("a", "2")) is not None


class OneHead(LabelSetStorage):
    """Storage of one head that can be unavailable, slow or changed."""

    def __init__(self) -> None:
        self.version: str | None = "1"
        self.away = False
        self.slow = False
        self.reads = 0

    async def head(self, name: str) -> StoredHead | None:
        """See `LabelSetStorage`."""
        self.reads += 1
        if self.slow:
            await asyncio.Event().wait()
        if self.away:
            raise StateUnavailable("away")
        if self.version is None:
            return None
        head = Head(version=self.version, digest="", labels=1, texts=1, templates="none", written=0.0)
        return StoredHead(head, "token")


async def test_the_current_version_is_looked_at_once_a_second() -> None:
    """Any number of requests cause one read a second; an unavailable or slow store leaves the known version."""
    now, storage = [0.0], OneHead()
    heads = Heads(storage, clock=lambda: now[0])

    async def version() -> str | None:
        head = await heads.get("s")
        return None if head is None else head.version

    assert ["1"] * 20 == await asyncio.gather(*(version() for _ in range(20)))
    now[0] = 0.9
    storage.version = "2"
    assert ("1", 1) == (await version(), storage.reads)
    now[0] = 1.1
    assert ("2", 2) == (await version(), storage.reads)
    storage.away = True
    for step in range(1, 5):
        now[0] = 1.1 + step * 1.1
        assert ["2"] * 3 == [await version() for _ in range(3)]
        assert 2 + step == storage.reads
    storage.away, storage.slow = False, True
    now[0] = 10.0
    assert "2" == await version()
    await heads.close()
    storage.slow, storage.version = False, None
    now[0] = 20.0
    assert await version() is None
    storage.away = True
    with pytest.raises(StateUnavailable):
        await version()


class GatedHead(OneHead):
    """Storage that reads at once, and returns when the gate opens."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def head(self, name: str) -> StoredHead | None:
        """See `LabelSetStorage`."""
        found = await super().head(name)
        await self.gate.wait()
        return found


async def test_what_is_written_here_is_newer_than_what_was_being_read() -> None:
    """A read that began before a write or a deletion does not restore the old version."""
    now, storage = [0.0], GatedHead()
    heads = Heads(storage, clock=lambda: now[0])
    newer = Head(version="2", digest="", labels=1, texts=1, templates="none", written=0.0)
    reading = asyncio.create_task(heads.get("s"))
    await until(lambda: storage.reads == 1)
    heads.put("s", newer)
    storage.gate.set()
    assert newer is await reading
    assert newer is await heads.get("s")
    now[0] = 2.0
    storage.gate.clear()
    reading = asyncio.create_task(heads.get("s"))
    await until(lambda: storage.reads == 2)
    heads.forget("s")
    storage.gate.set()
    assert await reading is None
