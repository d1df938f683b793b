"""A store that still answers reads but takes no writes is found out."""

import logging
from pathlib import Path

import pytest

from service.errors import StateUnavailable
from service.state.directory import DirectoryStateStore
from service.state.redis_store import RedisStateStore
from service.state.write_probe import WriteProbe
from tests.support.job_parts import Clock
from tests.support.redis_server import running_redis


class Counting(DirectoryStateStore):
    """A directory that counts tried writes, and refuses them on request.

    Attributes:
        tried: number of tried writes.
        full: whether they fail.
    """

    tried = 0
    full = False

    async def prove_writable(self) -> None:
        """See `StateStore`."""
        self.tried += 1
        if self.full:
            raise StateUnavailable("full")


async def test_a_write_is_tried_rarely_while_all_is_well(tmp_path: Path) -> None:
    """A failure is tried again at once, and so is a doubt."""
    store, clock = Counting(tmp_path), Clock()
    probe = WriteProbe(store, every_s=60, clock=clock)
    for seconds in (0, 59, 1):  # tried at 0 and at 60
        clock.now += seconds
        await probe.check()
    assert 2 == store.tried
    store.full = True
    probe.doubt()
    for tried in (3, 4):
        with pytest.raises(StateUnavailable):
            await probe.check()
        assert tried == store.tried
    store.full = False
    for _ in range(3):
        await probe.check()
    assert 5 == store.tried


@pytest.mark.parametrize(
    ("trouble", "mended"),
    [(("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
     (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"))],
    ids=["full", "read-only"],
)  # fmt: skip
async def test_a_redis_that_takes_no_writes(tmp_path: Path, trouble: tuple[str, ...], mended: tuple[str, ...]) -> None:
    """It answers reads all the time."""
    with running_redis(tmp_path) as redis:
        store = RedisStateStore(redis.url)
        await store.put("key", b"1", expected=None)
        await store.prove_writable()
        assert redis.command(*trouble).startswith(b"+OK")
        assert await store.get("key") is not None
        with pytest.raises(StateUnavailable):
            await store.prove_writable()
        assert redis.command(*mended).startswith(b"+OK")
        await store.prove_writable()
        await store.close()


async def test_a_directory_that_takes_no_writes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log has the reason's code and no path."""
    store = DirectoryStateStore(tmp_path / "state")
    (tmp_path / "state").write_text("in the way")
    assert [] == await store.keys("", limit=9)
    with caplog.at_level(logging.WARNING), pytest.raises(StateUnavailable):
        await store.prove_writable()
    assert ["the state directory failed: FileExistsError EEXIST"] == caplog.messages
    (tmp_path / "state").unlink()
    await store.prove_writable()
    await store.close()


async def test_the_fallback_is_not_created_by_a_tried_write(tmp_path: Path) -> None:
    """Its folder comes with the first real write."""
    store = DirectoryStateStore(tmp_path / "state", asked_for=False)
    await store.prove_writable()
    assert not (tmp_path / "state").exists()
    await store.close()
