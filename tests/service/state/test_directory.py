"""The directory store: leftovers of killed writers, damage, and folders that cannot be written to."""

import logging
import os
import shutil
import time
from pathlib import Path

import pytest

from service.errors import ConfigurationError, StateCorrupt, StateUnavailable
from service.state.directory import DirectoryStateStore


async def test_what_killed_writers_leave_is_removed_a_day_later(tmp_path: Path) -> None:
    """A start deletes old temporary files, and keeps those younger than a day."""
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
    """A value or blob that was truncated or changed raises an error naming its key."""
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


async def test_a_directory_that_cannot_be_written_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A configured directory prevents the start; the user's data folder only fails operations."""
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
    """After a start without a usable directory, the next use checks again."""
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
