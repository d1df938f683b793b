"""Both stores keep the same promises; they are tested with a real disk, real processes and a real redis-server."""

import asyncio
import hashlib
import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from service.errors import ConfigurationError, StateCorrupt, StateUnavailable
from service.settings import Settings
from service.state.directory import DirectoryStateStore
from service.state.factory import open_state
from service.state.protocol import StateStore
from service.state.redis_store import RedisStateStore
from tests.support.redis_server import RedisServer, running_redis
from tests.support.state_stores import KINDS, state_stores

SPAWN = multiprocessing.get_context("spawn")
PATIENCE_S = 60.0
RACERS = 3
TURNS = 20


@pytest.fixture(params=KINDS)
async def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[[], StateStore]]:
    """Makes state stores of one kind on the same content, as replicas have them."""
    async with state_stores(request.param, tmp_path) as make:
        yield make


@pytest.fixture
def store(make_store: Callable[[], StateStore]) -> StateStore:
    """One store."""
    return make_store()


async def test_a_value_is_read_as_it_was_written(make_store: Callable[[], StateStore]) -> None:
    """By another replica too; bytes of any kind."""
    value = bytes(range(256)) * 3
    version = await make_store().put("a/b", value, expected=None)
    found = await make_store().get("a/b")
    assert found is not None
    assert (value, version) == (found.value, found.version)
    assert await make_store().get("a/c") is None


async def test_compare_and_set(store: StateStore) -> None:
    """A value changes only from the version that the writer knows, and no version comes twice."""
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
    """By prefix: neither keys beside it nor a key of its own name; deleted ones are not among them."""
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
    """Written, listed and deleted by prefix; as large as a large set's definition."""
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
    """More than one page of them, in order."""
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


def _count(make: Callable[[], StateStore], start: Event) -> None:
    """Add one, `TURNS` times, as any program would that must lose no count."""

    async def main() -> None:
        store = make()
        start.wait(PATIENCE_S)
        for _ in range(TURNS):
            while True:
                found = await store.get("counter")
                count = int(found.value) if found else 0
                if await store.put("counter", b"%d" % (count + 1), expected=found.version if found else None):
                    break
        await store.close()

    asyncio.run(main())


def _directory_counter(path: Path, start: Event) -> None:
    _count(lambda: DirectoryStateStore(path), start)


def _redis_counter(url: str, start: Event) -> None:
    _count(lambda: RedisStateStore(url), start)


@pytest.mark.parametrize("kind", ["directory", "redis"])
async def test_racing_processes_lose_nothing(tmp_path: Path, kind: str) -> None:
    """Several processes count with compare-and-set; every count is there in the end."""
    with running_redis(tmp_path) as redis:
        path = tmp_path / "state"
        start = SPAWN.Event()
        target: Any = _directory_counter if kind == "directory" else _redis_counter
        where: Any = path if kind == "directory" else redis.url
        racers = [SPAWN.Process(target=target, args=(where, start)) for _ in range(RACERS)]
        for racer in racers:
            racer.start()
        start.set()
        for racer in racers:
            await asyncio.to_thread(racer.join, PATIENCE_S)
        assert [0] * RACERS == [racer.exitcode for racer in racers]
        store: StateStore = DirectoryStateStore(path) if kind == "directory" else RedisStateStore(redis.url)
        found = await store.get("counter")
        await store.close()
    assert found is not None
    assert RACERS * TURNS == int(found.value)


def _write_for_ever(path: Path, started: Event) -> None:
    async def main() -> None:
        store = DirectoryStateStore(path)
        version: str | None = None
        for number in range(1_000_000):
            content = hashlib.sha256(b"%d" % number).digest() * 20_000
            version = await store.put("value", content, expected=version)
            await store.put_blob("blob", content)
            if number == 1:
                started.set()

    asyncio.run(main())


async def test_a_killed_writer_leaves_a_whole_value(tmp_path: Path) -> None:
    """A kill -9 at any moment: the value is an old one or a new one, and the next writer is not locked out."""
    path = tmp_path / "state"
    for _ in range(4):
        started = SPAWN.Event()
        writer = SPAWN.Process(target=_write_for_ever, args=(path, started))
        writer.start()
        assert await asyncio.to_thread(started.wait, PATIENCE_S)
        await asyncio.sleep(random.uniform(0, 0.05))
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        await asyncio.to_thread(writer.join, PATIENCE_S)
        store = DirectoryStateStore(path)
        found = await store.get("value")
        blob = await store.get_blob("blob")
        assert found is not None
        assert blob is not None
        for content in (found.value, blob):
            assert content[:32] * 20_000 == content
        assert await store.delete("value", expected=found.version)
        await store.close()


async def test_what_killed_writers_leave_is_removed_a_day_later(tmp_path: Path) -> None:
    """A start removes old temporary files, and leaves a writer's of today alone."""
    store = DirectoryStateStore(tmp_path)
    await store.put_blob("a/b", b"x")
    folder = tmp_path / "state-v1" / "blobs" / "a"
    old, new = folder / ".tmp-old", folder / ".tmp-new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 2 * 86_400,) * 2)
    await store.check()
    assert {"b,v", ".tmp-new"} == {path.name for path in folder.iterdir()}
    assert ["a/b"] == await store.blob_keys("")
    await store.close()


@pytest.mark.parametrize("damage", [b"", b"\x80\x04", b"{}", b"anyclass-state-1\n" + bytes(40)])
async def test_damaged_entries_are_named(tmp_path: Path, damage: bytes) -> None:
    """A value or blob that was cut off or changed is an error that says which, on disk and in Redis."""
    store = DirectoryStateStore(tmp_path)
    await store.put("set/a", b"value", expected=None)
    await store.put_blob("set/b", b"blob")
    for path in (tmp_path / "state-v1").rglob("*,v"):
        path.write_bytes(damage)
    with pytest.raises(StateCorrupt, match=r"set/a "):
        await store.get("set/a")
    with pytest.raises(StateCorrupt, match=r"set/b "):
        await store.get_blob("set/b")
    await store.close()


async def test_damaged_entries_in_redis_are_named(tmp_path: Path) -> None:
    """The same for what somebody else has written into Redis."""
    with running_redis(tmp_path) as redis:
        store = RedisStateStore(redis.url)
        await store.put("set/a", b"value", expected=None)
        await store.put_blob("set/b", b"blob")
        redis.command("HSET", "{anyclass-state}:v1:value:set/a", "value", "pickled")
        redis.command("SET", "{anyclass-state}:v1:blob:set/b", "x")
        with pytest.raises(StateCorrupt, match=r"set/a "):
            await store.get("set/a")
        with pytest.raises(StateCorrupt, match=r"set/b "):
            await store.get_blob("set/b")
        await store.close()


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_redis_that_evicts_is_refused(tmp_path: Path, policy: str) -> None:
    """At the start; and where it was away at the start, with the first write."""
    with running_redis(tmp_path, arguments=["--maxmemory-policy", policy]) as redis:
        store = RedisStateStore(redis.url)
        with pytest.raises(ConfigurationError, match=policy):
            await store.check()
        with pytest.raises(StateUnavailable):
            await store.put("a", b"", expected=None)
        with pytest.raises(StateUnavailable):
            await store.put_blob("a", b"")
        await store.close()


async def test_a_redis_without_persistence_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that persists is not."""
    with running_redis(tmp_path) as redis:
        store = RedisStateStore(redis.url)
        await store.check()
        assert ["no persistence" in record.getMessage() for record in caplog.records] == [True]
        caplog.clear()
        redis.command("CONFIG", "SET", "appendonly", "yes")
        await store.check()
        assert [] == caplog.records
        await store.close()


async def test_a_redis_that_may_not_be_asked_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Managed services forbid INFO or CONFIG; they can still be used."""
    with running_redis(tmp_path) as redis:
        redis.command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-info", "-config")
        store = RedisStateStore(redis.url.replace("redis://", "redis://app:pw@"))
        await store.check()
        assert any("does not say whether it evicts" in record.getMessage() for record in caplog.records)
        assert await store.put("a", b"1", expected=None)
        await store.close()


async def test_a_redis_that_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No reason not to start; every use fails in time with the same error, until it is back."""
    redis = RedisServer(tmp_path, password="s3cret")
    store = RedisStateStore(redis.url, timeout_s=0.3)
    await store.check()
    for use in (store.get("a"), store.put("a", b"", expected=None), store.keys("", limit=1), store.get_blob("a")):
        with pytest.raises(StateUnavailable):
            await use
    redis.start()
    try:
        version = await store.put("a", b"1", expected=None)
        assert version is not None
        redis.freeze()
        with pytest.raises(StateUnavailable):
            await store.get("a")
        redis.thaw()
        assert await store.get("a") is not None
        redis.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StateUnavailable):
            await store.put("a", b"2", expected=version)
    finally:
        redis.close()
    await store.close()
    assert "s3cret" not in caplog.text


async def test_a_directory_that_cannot_be_written_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Asked for by name it stops the start; the user's data folder only fails what needs it."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    caplog.set_level(logging.WARNING)
    named, default = DirectoryStateStore(blocked), DirectoryStateStore(blocked, asked_for=False)
    with pytest.raises(ConfigurationError):
        await named.check()
    caplog.clear()
    assert not await default.check()
    for use in (default.get("a"), default.keys("", limit=5), default.put("a", b"", expected=None)):
        with pytest.raises(StateUnavailable, match="its operator can set ANYCLASS_STATE_URL") as caught:
            await use
        assert caught.value.lasting
    assert [True] == ["ANYCLASS_STATE_URL" in record.getMessage() for record in caplog.records]
    await named.close()
    await default.close()
    with pytest.raises(StateUnavailable):
        await default.get("a")


async def test_a_directory_that_can_be_written_to_after_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A start without a place for the state is not the end of it: the next use looks again."""
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    store = DirectoryStateStore(blocked / "anyclass", asked_for=False)
    assert not await store.check()
    blocked.unlink()
    assert await store.put("a", b"1", expected=None) is not None
    assert await store.check()
    shutil.rmtree(tmp_path / "file")
    blocked.write_text("not a folder")
    caplog.clear()
    with pytest.raises(StateUnavailable) as caught:
        await store.put("a", b"2", expected=None)
    assert not caught.value.lasting
    assert any("set ANYCLASS_STATE_URL" in record.getMessage() for record in caplog.records)
    await store.close()


async def test_which_store_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path, a file: URL, or a Redis; without any, the user's data folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for url, folder in (
        (None, "data/anyclass"),
        (str(tmp_path / "plain"), "plain"),
        ((tmp_path / "with space").as_uri(), "with space"),
    ):
        store = open_state(Settings(state_url=None if url is None else SecretStr(url)))
        await store.check()
        assert (url is not None) == (tmp_path / folder).exists()
        await store.put("a", b"1", expected=None)
        await store.close()
        assert (tmp_path / folder / "state-v1" / "values" / "a,v").is_file()
    redis = open_state(Settings(state_url=SecretStr("redis://127.0.0.1:1/0"), state_password=SecretStr("x")))
    assert isinstance(redis, RedisStateStore)
    await redis.close()
    for wrong in ("file://elsewhere/path", "file://"):
        with pytest.raises(ConfigurationError):
            open_state(Settings(state_url=SecretStr(wrong)))


@pytest.mark.parametrize("url", ["http://:s3cret@host/", "redis://:s3cret/slash@host"])
def test_a_state_url_that_cannot_be_used_is_not_shown(url: str) -> None:
    """It may hold a password."""
    with pytest.raises(ValueError, match="state_url") as caught:
        Settings(state_url=SecretStr(url))
    assert "s3cret" not in str(caught.value)
