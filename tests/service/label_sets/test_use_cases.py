import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from service.classification.types import LabelQuery, ScoringOptions
from service.errors import (
    InvalidTemplates,
    StateFull,
    UnknownLabelSet,
    VersionMismatch,
)
from service.label_sets.status import Condition
from service.label_sets.storage import LabelSetStorage
from service.label_sets.thread import in_thread
from service.state.directory import DirectoryStateStore
from service.state.protocol import StateStore
from tests.support.classifying import picture
from tests.support.label_set_parts import replica


async def test_a_set_answers_as_its_labels_do(tmp_path: Path) -> None:
    """Scores equal those of the labels to the bit, in the client's spelling; the first request computes no text."""
    async with replica(tmp_path) as one:
        status, created = await one.sets.put(
            "animals", one.definition(" Cat", "dog", "red  fox", templates=["a {}.", "{}"])
        )
        assert (True, "ready", 3) == (created, status.state, status.models[0].done)
        computed = len(one.engine.texts)
        answer = await one.classify("animals")
        assert computed == len(one.engine.texts)
        query = LabelQuery((" Cat", "dog", "red  fox"), ("a {}.", "{}"))
        plain = await one.classifier.classify(picture(), query, ScoringOptions(method="cosine"))
    assert plain.predictions == answer.predictions
    assert (3, 3) == (answer.labels, answer.labels_cached)


async def test_sets_have_a_thread_of_their_own(tmp_path: Path) -> None:
    """One: clients that write and read large sets neither fill the threads of others nor hold up the event loop."""
    loop, release = asyncio.get_running_loop(), threading.Event()
    executor = ThreadPoolExecutor(1)
    loop.set_default_executor(executor)
    async with replica(tmp_path) as one:
        busy = loop.run_in_executor(None, release.wait)
        try:
            async with asyncio.timeout(60):
                await one.put("s", "a", "b")
                assert ["a", "b"] == list((await one.sets.described("s"))[1].labels)
                assert 2 == (await one.classify("s")).labels
            assert 1 == len(set(await asyncio.gather(*[in_thread(threading.get_ident) for _ in range(8)])))
        finally:
            release.set()
            await busy


async def test_the_same_content_again_is_no_change(tmp_path: Path) -> None:
    """The version stays; other content, or another order, is a new version, and the old content is deleted."""
    async with replica(tmp_path) as one:
        first = await one.put("s", "a", "b")
        again, created = await one.sets.put("s", one.definition("a", "b"))
        assert (first.head, False) == (again.head, created)
        other = await one.put("s", "b", "a")
        assert first.head.version != other.head.version
        assert ["b", "a"] == list((await one.sets.described("s"))[1].labels)
        assert 1 == len(await LabelSetStorage(DirectoryStateStore(tmp_path / "state")).contents())


async def test_a_set_is_changed_only_as_its_writer_knows_it(tmp_path: Path) -> None:
    """If-Match and If-None-Match apply to writing and deleting; a failed condition changes nothing."""
    anything, nothing = Condition(if_match=frozenset("*")), Condition(if_none_match=frozenset("*"))
    async with replica(tmp_path) as one:
        a, b = one.definition("a"), one.definition("b")
        with pytest.raises(VersionMismatch):
            await one.sets.put("s", a, anything)
        first, created = await one.sets.put("s", a, nothing)
        assert created
        with pytest.raises(VersionMismatch):
            await one.sets.put("s", b, nothing)
        known = Condition(if_match=frozenset([first.head.version, "x"]))
        await one.sets.put("s", b, known)
        for condition in (known, Condition(if_match=frozenset())):
            with pytest.raises(VersionMismatch):
                await one.sets.put("s", a, condition)
            with pytest.raises(VersionMismatch):
                await one.sets.delete("s", condition)
        await one.sets.delete("s", anything)
        assert ([], None) == await one.sets.page()


async def test_writers_race(tmp_path: Path, shared: StateStore) -> None:
    """Of writers with the same condition one succeeds; without conditions all succeed in turn."""
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(replica(tmp_path, shared)) for _ in range(3)]
        none = Condition(if_none_match=frozenset("*"))
        outcomes = await asyncio.gather(
            *(each.sets.put("s", each.definition(f"by {n}"), none) for n, each in enumerate(replicas)),
            return_exceptions=True,
        )
        assert 1 == sum(isinstance(outcome, tuple) for outcome in outcomes)
        assert 2 == sum(isinstance(outcome, VersionMismatch) for outcome in outcomes)
        outcomes = await asyncio.gather(
            *(each.sets.put("s", each.definition(f"then by {n}")) for n, each in enumerate(replicas))
        )
        storage = LabelSetStorage(shared)
        stored = await storage.head("s")
        assert stored is not None
        assert await storage.contents() == {("s", stored.head.version)}
        assert await storage.definition("s", stored.head.version) is not None


async def test_sets_are_listed_by_name_in_pages(tmp_path: Path) -> None:
    """Each page gives the start of the next."""
    async with replica(tmp_path) as one:
        for name in ("b", "a", "c"):
            await one.put(name, name)
        first, following = await one.sets.page(limit=2)
        assert (["a", "b"], "b") == ([each.name for each in first], following)
        last, end = await one.sets.page(after="b", limit=2)
        assert (["c"], None) == ([each.name for each in last], end)


async def test_there_is_a_limit_of_sets(tmp_path: Path) -> None:
    """A set above the limit is refused; existing sets can be changed, and deleting one frees its place."""
    async with replica(tmp_path, max_label_sets=2) as one:
        for name in ("a", "b"):
            await one.put(name, "x")
        with pytest.raises(StateFull):
            await one.put("c", "x")
        await one.put("a", "y")
        await one.sets.delete("a")
        await one.put("c", "x")


@pytest.mark.parametrize("name", ["", "A", "../x", "a/b", "a" * 101, "ä", "-a"])
async def test_a_name_that_no_set_can_have_is_unknown(tmp_path: Path, name: str) -> None:
    """An invalid name never reaches the store."""
    async with replica(tmp_path) as one:
        for use in (one.classify(name), one.sets.status(name), one.sets.delete(name)):
            with pytest.raises(UnknownLabelSet):
                await use


async def test_a_template_set_is_looked_up_when_the_set_is_written(tmp_path: Path) -> None:
    """A set with an unknown template set is refused."""
    async with replica(tmp_path) as one:
        with pytest.raises(InvalidTemplates):
            await one.put("s", "a", templates="nowhere")
        assert "default" == (await one.put("s", "a", templates=None)).head.templates
