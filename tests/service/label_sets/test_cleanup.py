import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, TypeVar

import pytest

from service.errors import (
    StateUnavailable,
)
from service.label_sets.cleanup import BackgroundDeletion
from service.label_sets.storage import LabelSetStorage
from service.state.directory import DirectoryStateStore
from service.state.protocol import StateStore
from tests.support.classifying import until
from tests.support.label_set_parts import replica

T = TypeVar("T")


async def test_content_without_a_head_is_deleted_by_a_later_start(tmp_path: Path) -> None:
    """Content without a head is deleted if it is older than an hour; younger content may still get a head."""
    store = DirectoryStateStore(tmp_path / "state")
    storage = LabelSetStorage(store)
    an_hour_ago = f"{int((time.time() - 3_700) * 1000):012x}" + "0" * 20
    now = f"{int(time.time() * 1000):012x}" + "0" * 20
    for version in (an_hour_ago, now):
        await storage.write_definition("s", version, b"{}")
    async with replica(tmp_path, store) as one:
        await one.put("s", "a")

        async def swept() -> bool:
            return an_hour_ago not in {version for _, version in await storage.contents()}

        await until(swept)
        assert now in {version for _, version in await storage.contents()}
        assert 1 == (await one.classify("s")).labels
    await store.close()


class Faulty(DirectoryStateStore):
    """A store that fails at chosen operations.

    Attributes:
        part: blobs whose key has it cannot be written, None for all can.
        hangs: such a write does not fail: it does not come back.
        stays: how often blobs cannot be deleted.
        heads: what becomes of a change of a value that fails, None where none does.
        met: how many writes have met with a failure.
    """

    part: str | None = None
    hangs = False
    stays = 0
    heads: Literal["lost", "done"] | None = None
    met = 0

    async def put_blob(self, key: str, blob: bytes) -> None:
        """See `StateStore`."""
        if self.part is not None and self.part in key:
            self.met += 1
            if self.hangs:
                await asyncio.Event().wait()
            raise StateUnavailable("away")
        await super().put_blob(key, blob)

    async def delete_blobs(self, prefix: str) -> None:
        """See `StateStore`."""
        if self.stays:
            self.stays -= 1
            raise StateUnavailable("away")
        await super().delete_blobs(prefix)

    async def put(self, key: str, value: bytes, *, expected: str | None) -> str | None:
        """See `StateStore`."""
        return await self._perhaps_lost(lambda: super(Faulty, self).put(key, value, expected=expected))

    async def delete(self, key: str, *, expected: str) -> bool:
        """See `StateStore`."""
        return await self._perhaps_lost(lambda: super(Faulty, self).delete(key, expected=expected))

    async def _perhaps_lost(self, change: Callable[[], Awaitable[T]]) -> T:
        if self.heads is None:
            return await change()
        self.met += 1
        if self.heads == "done":
            await change()
        raise StateUnavailable("away")


async def only(store: StateStore, *versions: str) -> None:
    """Wait until the store has content of exactly these versions."""

    async def is_so() -> bool:
        return {version for _, version in await LabelSetStorage(store).contents()} == set(versions)

    await until(is_so)


@pytest.mark.parametrize("stays", [0, 2])
@pytest.mark.parametrize("part", ["/definition", "/vectors/"])
async def test_a_write_that_fails_leaves_nothing(tmp_path: Path, part: str, stays: int) -> None:
    """Its content is deleted at once, or once the store answers again. The set stays unchanged."""
    store = Faulty(tmp_path / "state")
    async with replica(tmp_path, store) as one:
        old = (await one.put("s", "old")).head.version
        store.part, store.stays = part, stays
        with pytest.raises(StateUnavailable):
            await one.put("s", "new")
        await until(lambda: store.stays == 0)
        await only(store, old)
        assert ["old"] == [prediction.label for prediction in (await one.classify("s")).predictions]
    assert 1 == store.met
    await store.close()


async def test_a_write_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    """A write that is cancelled midway leaves no content."""
    store = Faulty(tmp_path / "state")
    async with replica(tmp_path, store) as one:
        old = (await one.put("s", "old")).head.version
        store.part, store.hangs = "/vectors/", True
        writing = asyncio.create_task(one.put("s", "new"))
        await until(lambda: store.met == 1)
        assert 2 == len(await LabelSetStorage(store).contents())
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await only(store, old)
    await store.close()


class Late(DirectoryStateStore):
    """A store on which a write completes just after its blobs were deleted, once."""

    late: str | None = None

    async def delete_blobs(self, prefix: str) -> None:
        """See `StateStore`."""
        await super().delete_blobs(prefix)
        if self.late is not None:
            key, self.late = self.late, None
            await self.put_blob(key, b"late")


async def test_a_blob_that_comes_late_is_deleted_too(tmp_path: Path) -> None:
    """A cancelled write may complete after the first deletion; the second one removes its blob."""
    store = Late(tmp_path / "state")
    store.late = "label-sets/s/1/definition"
    deletion = BackgroundDeletion(LabelSetStorage(store), settled_s=0.0)
    deletion.delete("s", "1")
    await until(lambda: not deletion.busy)
    assert not store.late
    assert set() == await LabelSetStorage(store).contents()
    await store.close()


@pytest.mark.parametrize("heads", ["lost", "done"])
async def test_a_head_that_fails_may_have_been_written(tmp_path: Path, heads: Literal["lost", "done"]) -> None:
    """Once the write has ended, the content that the head does not refer to is deleted, new or old."""
    store = Faulty(tmp_path / "state")
    async with replica(tmp_path, store) as one:
        await one.put("s", "old")
        one.sets._deletion.settled_s = 0.0
        store.heads = heads
        with pytest.raises(StateUnavailable):
            await one.put("s", "new")
        store.heads = None
        stored = await LabelSetStorage(store).head("s")
        assert stored is not None
        await only(store, stored.head.version)
        (there,) = (await one.sets.described("s"))[1].labels
        assert {"lost": "old", "done": "new"}[heads] == there
    assert 1 == store.met
    await store.close()


@pytest.mark.parametrize("heads", ["lost", "done"])
async def test_a_deletion_that_fails_may_have_been_done(tmp_path: Path, heads: Literal["lost", "done"]) -> None:
    """The content is deleted if the head was deleted, and kept otherwise."""
    store = Faulty(tmp_path / "state")
    async with replica(tmp_path, store) as one:
        version = (await one.put("s", "a")).head.version
        other = (await one.put("other", "a")).head.version
        one.sets._deletion.settled_s = 0.0
        store.heads = heads
        with pytest.raises(StateUnavailable):
            await one.sets.delete("s")
        store.heads = None
        await until(lambda: not one.sets._deletion.busy)
        await only(store, other, *([version] if heads == "lost" else []))
    assert 1 == store.met
    await store.close()
