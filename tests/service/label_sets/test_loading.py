import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from service.classification.types import Classification, LabelQuery, ScoringOptions
from service.errors import (
    StateCorrupt,
    StateUnavailable,
    UnknownLabelSet,
)
from service.label_sets.ready_sets import FRESH_S
from service.label_sets.storage import LabelSetStorage
from service.lanes import Lane
from service.state.directory import DirectoryStateStore
from service.state.protocol import StateStore
from service.state.redis_store import RedisStateStore
from tests.support.classifying import picture, until
from tests.support.label_set_parts import replica
from tests.support.redis_server import running_redis


async def test_a_change_elsewhere_is_seen_within_a_second(tmp_path: Path, shared: StateStore) -> None:
    """A replica with the old version in memory answers with the new one; a deleted set becomes unknown."""
    async with replica(tmp_path, shared) as one, replica(tmp_path, shared) as two:
        await one.put("s", "old")

        async def labels() -> list[str]:
            return [prediction.label for prediction in (await two.classify("s")).predictions]

        assert ["old"] == await labels()
        await one.put("s", "new")
        assert ["new"] == [prediction.label for prediction in (await one.classify("s")).predictions]

        async def is_new() -> bool:
            return await labels() == ["new"]

        await until(is_new)
        await one.sets.delete("s")

        async def is_gone() -> bool:
            try:
                await labels()
            except UnknownLabelSet:
                return True
            return False

        await until(is_gone)


class Meanwhile(DirectoryStateStore):
    """A store that runs a callback just before a blob is read."""

    before: tuple[str, Callable[[], Awaitable[object]]] | None = None
    happened = 0

    async def get_blob(self, key: str) -> bytes | None:
        """Run the callback once, before the first blob whose key contains its part."""
        if self.before is not None and self.before[0] in key:
            (_, happen), self.before = self.before, None
            await happen()
            self.happened += 1
        return await super().get_blob(key)


@pytest.mark.parametrize("part", ["/definition", "/vectors/"])
async def test_a_request_meets_no_gap_between_two_versions(tmp_path: Path, part: str) -> None:
    """A set that another process replaces during or just before the lookup is used in its new version."""
    store = Meanwhile(tmp_path / "state")
    async with replica(tmp_path, store) as one, replica(tmp_path, DirectoryStateStore(tmp_path / "state")) as two:
        await two.put("s", "old")
        store.before = (part, lambda: two.put("s", "new"))
        assert ["new"] == [prediction.label for prediction in (await one.classify("s")).predictions]
        assert 1 == store.happened
    await store.close()


async def test_labels_are_those_of_the_returned_version(tmp_path: Path) -> None:
    """Status and labels are of one version even if another process replaces the set between the reads."""
    store = Meanwhile(tmp_path / "state")
    async with replica(tmp_path, store) as one, replica(tmp_path, DirectoryStateStore(tmp_path / "state")) as two:
        await two.put("s", "old")
        store.before = ("/definition", lambda: two.put("s", "new"))
        status, definition = await one.sets.described("s")
        assert ((await two.sets.status("s")).head, ("new",)) == (status.head, definition.labels)
    await store.close()


async def test_lost_content_is_reported(tmp_path: Path) -> None:
    """Missing content is reported as corrupt, not as being computed or unknown."""
    store = DirectoryStateStore(tmp_path / "state")
    async with replica(tmp_path, store) as one:
        await one.put("s", "a")
        await store.delete_blobs("label-sets/")
        for use in (one.classify("s"), one.sets.described("s")):
            with pytest.raises(StateCorrupt, match=r"Label set s is corrupt: its content is missing"):
                await use
    await store.close()


async def test_requests_end_with_the_version_they_began_with(tmp_path: Path) -> None:
    """Requests under way keep a set that is deleted or replaced."""
    async with replica(tmp_path) as one:
        await one.put("s", "a", "b")
        one.engine.gate.clear()
        running = asyncio.create_task(one.classify("s"))
        await until(lambda: len(one.engine.batches) > 1)
        await one.sets.delete("s")
        with pytest.raises(UnknownLabelSet):
            await one.classify("s")
        one.engine.gate.set()
        assert {"a", "b"} == {prediction.label for prediction in (await running).predictions}
        with pytest.raises(UnknownLabelSet):
            await one.sets.delete("s")
        assert await LabelSetStorage(DirectoryStateStore(tmp_path / "state")).contents() == set()


async def test_redis_goes_away(tmp_path: Path) -> None:
    """Without Redis, writes and sets outside memory fail; labels and sets in memory still work."""
    with running_redis(tmp_path) as redis:
        # Long enough for a busy machine.
        store = RedisStateStore(redis.url, timeout_s=5)
        async with replica(tmp_path, store) as one:
            await one.put("known", "a", "b")
            await one.put("cold", "c")
            await one.classify("known")
            one.sets._loader.heads._clock = lambda: time.monotonic() + 2 * FRESH_S  # the version must be read again
            redis.freeze()
            assert 2 == (await one.classify("known")).labels
            redis.thaw()
            redis.kill()
            for _ in range(3):
                assert 2 == (await one.classify("known")).labels
            query = LabelQuery(("x", "y"), "none")
            assert 2 == (await one.classifier.classify(picture(), query, ScoringOptions())).labels
            for use in (one.put("new", "a"), one.sets.delete("known"), one.sets.page(), one.classify("other")):
                with pytest.raises(StateUnavailable):
                    await use
            redis.start()  # and empty
            await one.put("new", "a")
            assert 1 == (await one.classify("new")).labels
        await store.close()


async def test_a_batch_uses_a_set_too(tmp_path: Path) -> None:
    """A batch resolves the set in the background lane."""
    async with replica(tmp_path) as one:
        await one.put("s", "a", "b")
        query = LabelQuery((), label_set="s")
        answers = [
            answer
            async for _, answer in one.classifier.classify_many([picture(), picture("blue")], query, ScoringOptions())
        ]
        assert [2, 2] == [answer.labels for answer in answers if isinstance(answer, Classification)]
        assert 0 == one.model.texts[Lane.BACKGROUND].occupied
