"""Both stores keep the same promises, on a real disk and a real redis-server."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.state.directory import DirectoryStateStore
from service.state.protocol import StateStore
from tests.support.state_stores import KINDS, state_stores


@pytest.fixture(params=KINDS)
async def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[[], StateStore]]:
    """Return a factory of stores of one kind on the same content, as replicas have them."""
    async with state_stores(request.param, tmp_path) as make:
        yield make


@pytest.fixture
def store(make_store: Callable[[], StateStore]) -> StateStore:
    """One store."""
    return make_store()


def everything(folder: Path) -> list[Path]:
    """Return the files and folders below a folder."""
    return sorted(folder.rglob("*"))


async def test_a_value_is_read_as_it_was_written(make_store: Callable[[], StateStore]) -> None:
    """Other replicas read it too; values may be any bytes."""
    value = bytes(range(256)) * 3
    version = await make_store().put("a/b", value, expected=None)
    found = await make_store().get("a/b")
    assert found is not None
    assert (value, version) == (found.value, found.version)
    assert await make_store().get("a/c") is None


async def test_a_tried_write_leaves_nothing(store: StateStore, tmp_path: Path) -> None:
    """It may be repeated for ever."""
    await store.put("key", b"1", expected=None)
    before = everything(tmp_path)
    for _ in range(3):
        await store.prove_writable()
    assert (["key"], []) == (await store.keys("", limit=9), await store.blob_keys(""))
    assert before == everything(tmp_path)


async def test_the_size_of_blobs(store: StateStore) -> None:
    """Bytes of the content, of all blobs under a prefix."""
    for key, size in (("a/1", 700), ("a/2", 0), ("a/b/3", 5), ("ab/1", 9)):
        await store.put_blob(key, bytes(size))
    assert [705, 5, 714, 0] == [await store.blob_bytes(prefix) for prefix in ("a/", "a/b/", "", "c/")]


async def test_compare_and_set(store: StateStore) -> None:
    """A value changes only from the version that the writer knows, and no version occurs twice."""
    first = await store.put("key", b"1", expected=None)
    assert first is not None
    assert await store.put("key", b"2", expected=None) is None
    second = await store.put("key", b"2", expected=first)
    assert second not in (None, first)
    assert await store.put("key", b"3", expected=first) is None
    assert not await store.delete("key", expected=first)
    assert await store.delete("key", expected=str(second))
    assert await store.get("key") is None
    assert not await store.delete("key", expected=str(second))
    assert await store.put("key", b"4", expected=second) is None
    assert await store.put("key", b"4", expected=None) not in (None, first, second)


async def test_keys_are_listed_in_order_and_in_pages(store: StateStore) -> None:
    """A prefix excludes keys beside it, a key of its own name, and deleted keys."""
    versions = {
        key: await store.put(key, b"", expected=None) for key in ("s/b", "s/a", "s/a.b", "s/c", "s", "sa", "r/z")
    }
    assert ["s/a", "s/a.b", "s/b", "s/c"] == await store.keys("s/", limit=10)
    assert ["s/a", "s/a.b"] == await store.keys("s/", limit=2)
    assert ["s/b", "s/c"] == await store.keys("s/", after="s/a.b", limit=10)
    assert await store.delete("s/b", expected=str(versions["s/b"]))
    assert ["s/c"] == await store.keys("s/", after="s/a.b", limit=10)
    assert ["r/z", "s", "s/a", "s/a.b", "s/c", "sa"] == sorted(await store.keys("", limit=10))
    assert [] == await store.keys("none/", limit=10)


async def test_blobs(store: StateStore) -> None:
    """Blobs are written, listed and deleted by prefix, up to the size of a large set's definition."""
    large = random.Random(0).randbytes(3_000_000)
    for number in range(3):
        await store.put_blob(f"set/v1/block/{number:03}", large if number == 1 else b"")
    await store.put_blob("set/v10/block/000", b"another")
    await store.put_blob("set/v1", b"a blob where others have a folder")
    assert large == await store.get_blob("set/v1/block/001")
    assert b"" == await store.get_blob("set/v1/block/002")
    assert await store.get_blob("set/v1/block/003") is None
    assert [f"set/v1/block/{number:03}" for number in range(3)] == await store.blob_keys("set/v1/")
    await store.delete_blobs("set/v1/")
    assert ["set/v1", "set/v10/block/000"] == await store.blob_keys("set/")
    assert await store.get_blob("set/v1/block/001") is None
    await store.delete_blobs("nothing/")


async def test_many_blobs(store: StateStore) -> None:
    """More blobs than a page are listed in order."""
    keys = [f"many/{number:04}" for number in range(1_100)]
    if isinstance(store, DirectoryStateStore):
        keys = keys[:50]  # each is flushed to the disk
    for start in range(0, len(keys), 50):
        await asyncio.gather(*(store.put_blob(key, b"x") for key in keys[start : start + 50]))
    assert keys == await store.blob_keys("many/")
    await store.delete_blobs("many/")
    assert [] == await store.blob_keys("many/")


@pytest.mark.parametrize("key", ["", "/", "a/", "/a", "A", "a//b", "../a", "a/..", ".a", "a b", "a\n", "ä", "a" * 201])
async def test_what_is_not_a_key_is_refused(store: StateStore, key: str) -> None:
    """No path leads out of the store."""
    with pytest.raises(ValueError, match="not a key"):
        await store.put(key, b"", expected=None)
    with pytest.raises(ValueError, match="not a key"):
        await store.get_blob(key)
