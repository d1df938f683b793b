"""The Redis store, on a real redis-server."""

from pathlib import Path

import pytest

from service.errors import ConfigurationError, StateCorrupt, StateUnavailable
from service.state.redis_store import RedisStateStore
from tests.support.redis_server import RedisServer, running_redis


async def test_damaged_entries_in_redis_are_named(tmp_path: Path) -> None:
    """Values that another program wrote into Redis raise StateCorrupt too."""
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
    """It is refused at the start, or with the first write if it was away then."""
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
    """A Redis with persistence gives no warning."""
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
    """Managed services that forbid INFO or CONFIG can still be used."""
    with running_redis(tmp_path) as redis:
        redis.command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-info", "-config")
        store = RedisStateStore(redis.url.replace("redis://", "redis://app:pw@"))
        await store.check()
        assert any("does not say whether it evicts" in record.getMessage() for record in caplog.records)
        assert await store.put("a", b"1", expected=None)
        await store.close()


async def test_a_redis_that_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The start succeeds; every use fails in time with the same error until Redis is back."""
    redis = RedisServer(tmp_path, password="s3cret")
    # Only the use that must fail is in a hurry: on a busy machine the others may take long.
    store, hasty = RedisStateStore(redis.url, timeout_s=60), RedisStateStore(redis.url, timeout_s=0.3)
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
            await hasty.get("a")
        redis.thaw()
        assert await store.get("a") is not None
        redis.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StateUnavailable):
            await store.put("a", b"2", expected=version)
    finally:
        redis.close()
    await store.close()
    await hasty.close()
    assert "s3cret" not in caplog.text
