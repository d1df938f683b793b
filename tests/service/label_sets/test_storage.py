import json
from pathlib import Path

import numpy as np
import pytest

from service.errors import (
    StateCorrupt,
)
from service.state.directory import DirectoryStateStore
from tests.support.label_set_parts import replica


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("blobs/label-sets/s/*/definition,v", b'{"schema":1,"templates":"none","labels":[1],"descriptions":{}}'),
        ("blobs/label-sets/s/*/definition,v", b'{"schema":1,"templates":"none","labels":["a"],"descriptions":{}}'),
        ("blobs/label-sets/s/*/definition,v", b"[]"),
        ("blobs/label-sets/s/*/vectors/*/000000,v", bytes(2 * 16 * 4)),
        ("blobs/label-sets/s/*/vectors/*/000000,v", np.full((2, 16), np.nan, "<f4").tobytes()),
        ("blobs/label-sets/s/*/vectors/*/000000,v", bytes(4)),
    ],
)
async def test_what_is_stored_is_checked_before_it_is_used(tmp_path: Path, file: str, content: bytes) -> None:
    """Wrong label counts and vectors of a wrong size, not finite or not of unit length are refused."""
    async with replica(tmp_path) as one:
        await one.put("s", "a", "b")
        store = DirectoryStateStore(tmp_path / "state")
        (path,) = (tmp_path / "state" / "state-v1").glob(file)
        key = path.relative_to(tmp_path / "state" / "state-v1" / "blobs").as_posix().removesuffix(",v")
        await store.put_blob(key, content)
        with pytest.raises(StateCorrupt, match=r"\bs\b"):
            await one.classify("s")
        await one.sets.delete("s")
        await one.put("s", "a", "b")
        assert 2 == (await one.classify("s")).labels
        await store.close()


async def test_a_damaged_head_is_named(tmp_path: Path) -> None:
    """Requests for the set name the damaged entry; the list of sets leaves it out."""
    store = DirectoryStateStore(tmp_path / "state")
    await store.put("label-sets/s", b'{"version": "1"}', expected=None)
    async with replica(tmp_path, store) as one:
        for use in (one.classify("s"), one.sets.status("s")):
            with pytest.raises(StateCorrupt, match="label-sets/s"):
                await use
        assert ([], None) == await one.sets.page()
    await store.close()


async def test_the_definition_on_disk_is_plain_json(tmp_path: Path) -> None:
    """Plain JSON can be read without running code."""
    async with replica(tmp_path) as one:
        status = await one.put("s", "a", "b", b=["x"])
        store = DirectoryStateStore(tmp_path / "state")
        content = await store.get_blob(f"label-sets/s/{status.head.version}/definition")
        await store.close()
    expected = {"schema": 1, "templates": "none", "labels": ["a", "b"], "descriptions": {"1": ["x"]}}
    assert content is not None
    assert expected == json.loads(content)
