import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.classification.classifier import Classifier
from service.classification.pipeline import Pipeline
from service.classification.types import Classification, LabelQuery, ScoringOptions
from service.errors import (
    AnyclassError,
    InvalidLabels,
    InvalidTemplates,
    LabelSetComputing,
    LabelSetFailed,
    PromptTooLong,
    StateCorrupt,
    StateFull,
    StateUnavailable,
    TooManyLabels,
    UnknownLabelSet,
    VersionMismatch,
)
from service.inference.registry import ModelRegistry
from service.inference.served_model import Model
from service.label_sets.cleanup import BackgroundDeletion
from service.label_sets.definition import Definition, check_definition, definition_from_json
from service.label_sets.ready_sets import Heads, ReadySets, ready_set
from service.label_sets.status import Condition, LabelSetStatus
from service.label_sets.storage import BLOCK, Head, LabelSetStorage, StoredHead
from service.label_sets.storage import VectorsId as Which
from service.label_sets.use_cases import LabelSets
from service.labels.cache import MemoryTextCache
from service.lanes import Lane
from service.model.loading import load_bundle
from service.monitoring.metrics import Metrics
from service.settings import Settings
from service.state.directory import DirectoryStateStore
from service.state.protocol import StateStore
from service.state.redis_store import RedisStateStore
from tests.support.classifying import picture, until
from tests.support.fake_engine import FakeEngine
from tests.support.redis_server import running_redis
from tests.support.state_stores import KINDS, state_stores
from tests.support.tiny_bundle import write_tiny_bundle

T = TypeVar("T")


@dataclass
class Replica:
    """One process of the service, as far as label sets go."""

    classifier: Classifier
    pipeline: Pipeline
    engine: FakeEngine
    settings: Settings

    @property
    def sets(self) -> LabelSets:
        """Its label sets."""
        return self.classifier.label_sets

    @property
    def model(self) -> Model:
        """Its model."""
        return self.pipeline.model(None)

    def definition(self, *labels: str, templates: Any = "none", **descriptions: list[str]) -> Definition:
        """A set of these labels; `descriptions` by label."""
        by_index = {labels.index(label): texts for label, texts in descriptions.items()}
        return check_definition(labels, by_index, templates, self.settings)

    async def put(self, name: str, *labels: str, **options: Any) -> LabelSetStatus:
        """Write a set."""
        return (await self.sets.put(name, self.definition(*labels, **options)))[0]

    async def classify(self, name: str) -> Classification:
        """Compare a red picture with the labels of a set."""
        query = LabelQuery((), label_set=name)
        return await self.classifier.classify(picture(), query, ScoringOptions(method="cosine"))

    async def state(self, name: str) -> str:
        """How a set stands."""
        return (await self.sets.status(name)).state


@asynccontextmanager
async def replica(
    path: Path, store: StateStore | None = None, *, start: bool = True, **options: Any
) -> AsyncIterator[Replica]:
    """A replica on the state in `path`, or on `store`."""
    engine = FakeEngine(precision=options.pop("precision", "fp32"))
    settings, metrics = Settings(**{"decode_threads": 1, **options}), Metrics()
    bundle = path / "tiny"

    def load() -> ModelRegistry:
        loaded = load_bundle(bundle if bundle.exists() else write_tiny_bundle(bundle))
        registry = ModelRegistry.of([(loaded, engine)], settings, metrics)
        registry.warm()
        return registry

    registry = await asyncio.to_thread(load)
    state = store or DirectoryStateStore(path / "state")
    pipeline = Pipeline(registry, MemoryTextCache(100_000, metrics), settings, metrics)
    label_sets = LabelSets(state, registry, pipeline.label_vectors, settings, metrics)
    classifier = Classifier(pipeline, settings, metrics, label_sets)
    if start:
        classifier.label_sets.start()
    try:
        yield Replica(classifier, pipeline, engine, settings)
    finally:
        engine.gate.set()
        await classifier.close()
        await registry.close()
        if store is None:
            await state.close()


@pytest.fixture(params=KINDS)
async def shared(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[StateStore]:
    """A state that replicas share; each process has connections of its own, which makes no difference here."""
    async with state_stores(request.param, tmp_path) as make:
        yield make()


def many(count: int) -> list[str]:
    """Labels that differ."""
    return [f"label {number}" for number in range(count)]


async def ready(each: Replica, name: str) -> None:
    """Wait until a set is."""

    async def is_ready() -> bool:
        return await each.state(name) == "ready"

    await until(is_ready)


async def test_a_set_answers_as_its_labels_do(tmp_path: Path) -> None:
    """The same scores to the bit, in the writer's spelling; the first request is warm."""
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


async def test_the_same_content_again_is_no_change(tmp_path: Path) -> None:
    """Its version stays; other content, or another order, is another version, and the old content is gone."""
    async with replica(tmp_path) as one:
        first = await one.put("s", "a", "b")
        again, created = await one.sets.put("s", one.definition("a", "b"))
        assert (first.head, False) == (again.head, created)
        other = await one.put("s", "b", "a")
        assert first.head.version != other.head.version
        assert ["b", "a"] == list((await one.sets.described("s"))[1].labels)
        assert 1 == len(await LabelSetStorage(DirectoryStateStore(tmp_path / "state")).contents())


async def test_a_label_is_the_mean_of_its_descriptions(tmp_path: Path) -> None:
    """Of all prompts, descriptions × templates, as unit vectors, normalised; two labels may share a description."""
    templates = ["a {}.", "the {}"]
    async with replica(tmp_path) as one:
        await one.put("s", "cat", "dog", "pup", templates=templates, cat=["tabby", "house cat", "kitten"], pup=["dog"])
        found = await one.sets.resolve("s", one.model)
        prompts = [template.replace("{}", text) for text in ("tabby", "house cat", "kitten") for template in templates]
        embeddings = one.engine.encode_texts(one.model.tokenizer.pad(one.model.tokenizer.tokenize(prompts)))
    mean = embeddings.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(found.vectors[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_array_equal(found.vectors[1], found.vectors[2])
    assert ("cat", "dog", "pup") == found.labels
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)


async def test_a_large_set_is_computed_in_the_background(tmp_path: Path) -> None:
    """Its status tells how far it is; until it is there, requests are told when to come back."""
    labels = many(2 * BLOCK + 100)
    async with replica(tmp_path, label_set_inline_prompts=50) as one:
        one.engine.gate.clear()
        status = await one.put("large", *labels)
        assert ("computing", 0, len(labels)) == (status.state, status.models[0].done, status.models[0].total)
        assert status.retry_after_s is not None
        with pytest.raises(LabelSetComputing) as caught:
            await one.classify("large")
        assert 1 <= caught.value.retry_after_s <= 60
        small = asyncio.create_task(one.put("small", "a", "b"))
        one.engine.gate.set()
        await small
        await ready(one, "large")
        answer = await one.classify("large")
        assert len(labels) == answer.labels
        np.testing.assert_array_equal(
            (await one.sets.resolve("large", one.model)).vectors,
            (await one.pipeline.label_vectors.matrix(one.model, labels, ("{}",))).vectors,
        )
    assert len(set(one.engine.texts)) == len(one.engine.texts)


async def test_a_restart_goes_on_where_the_process_ended(tmp_path: Path) -> None:
    """What was computed is not computed again."""
    labels = many(4 * BLOCK)
    async with replica(tmp_path, label_set_inline_prompts=0) as one:
        stop_after = BLOCK + BLOCK // 2

        def hold(kind: str, batch: Any) -> None:
            if len(one.engine.texts) > stop_after:
                one.engine.gate.clear()

        one.engine.before = hold
        await one.put("large", *labels)
        await until(lambda: not one.engine.gate.is_set())
        assert await one.state("large") == "computing"
        closing = asyncio.create_task(one.sets.close())
        one.engine.before = None
        one.engine.gate.set()
        await closing
    async with replica(tmp_path, label_set_inline_prompts=0) as two:
        await until(lambda: len(two.engine.texts) >= 3 * BLOCK)
        await ready(two, "large")
        assert 3 * BLOCK == len(two.engine.texts)
        assert len(labels) == (await two.classify("large")).labels


async def test_replicas_share_the_work(tmp_path: Path, shared: StateStore) -> None:
    """Two that compute one set do little twice; what both wrote is one set."""
    labels = many(12 * BLOCK)
    options: dict[str, Any] = {"label_set_inline_prompts": 0, "max_batch": 128}
    async with replica(tmp_path, shared, **options) as one, replica(tmp_path, shared, **options) as two:
        for each in (one, two):
            each.engine.delay_s = 0.003
        await one.put("large", *labels)
        assert await two.state("large") == "computing"
        await ready(two, "large")
        assert len(labels) == (await one.classify("large")).labels == (await two.classify("large")).labels
        shares = [len(each.engine.texts) for each in (one, two)]
    assert min(shares) >= BLOCK
    assert sum(shares) < 2 * len(labels)


async def test_each_numerics_has_its_own_vectors(tmp_path: Path, shared: StateStore) -> None:
    """A replica on another device computes what it lacks on first use, small or large; neither disturbs the other."""
    async with replica(tmp_path, shared) as one, replica(tmp_path, shared, precision="fp16", start=False) as two:
        await one.put("s", "a", "b")
        assert (await one.classify("s")).labels == (await two.classify("s")).labels
        assert 2 == len(one.engine.texts) == len(two.engine.texts)
        await one.put("t", *many(30))
        async with replica(tmp_path, shared, precision="int8", label_set_inline_prompts=1) as three:
            with pytest.raises(LabelSetComputing):
                await three.classify("t")
            await ready(three, "t")
            assert 30 == (await three.classify("t")).labels


async def test_a_change_elsewhere_is_seen_within_a_second(tmp_path: Path, shared: StateStore) -> None:
    """On a replica that has the old version in memory; a deleted set is unknown there."""
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
    """A store on which something else happens just before a blob is read."""

    before: tuple[str, Callable[[], Awaitable[object]]] | None = None
    happened = 0

    async def get_blob(self, key: str) -> bytes | None:
        """Let the other thing happen once, before the first blob whose key has that part."""
        if self.before is not None and self.before[0] in key:
            (_, happen), self.before = self.before, None
            await happen()
            self.happened += 1
        return await super().get_blob(key)


@pytest.mark.parametrize("part", ["/definition", "/vectors/"])
async def test_a_request_meets_no_gap_between_two_versions(tmp_path: Path, part: str) -> None:
    """A set that another process replaces while it is looked up, or just before, is answered in its new version."""
    store = Meanwhile(tmp_path / "state")
    async with replica(tmp_path, store) as one, replica(tmp_path, DirectoryStateStore(tmp_path / "state")) as two:
        await two.put("s", "old")
        store.before = (part, lambda: two.put("s", "new"))
        assert ["new"] == [prediction.label for prediction in (await one.classify("s")).predictions]
        assert 1 == store.happened
    await store.close()


async def test_labels_are_those_of_the_version_that_is_told(tmp_path: Path) -> None:
    """Also where another process replaces the set between the two."""
    store = Meanwhile(tmp_path / "state")
    async with replica(tmp_path, store) as one, replica(tmp_path, DirectoryStateStore(tmp_path / "state")) as two:
        await two.put("s", "old")
        store.before = ("/definition", lambda: two.put("s", "new"))
        status, definition = await one.sets.described("s")
        assert ((await two.sets.status("s")).head, ("new",)) == (status.head, definition.labels)
    await store.close()


async def test_content_that_was_lost_is_told_of(tmp_path: Path) -> None:
    """It is no reason to wait for it, nor is the set unknown."""
    store = DirectoryStateStore(tmp_path / "state")
    async with replica(tmp_path, store) as one:
        await one.put("s", "a")
        await store.delete_blobs("label-sets/")
        for use in (one.classify("s"), one.sets.described("s")):
            with pytest.raises(StateCorrupt, match=r"Label set s is corrupt: its content is missing"):
                await use
    await store.close()


async def test_requests_end_with_the_version_they_began_with(tmp_path: Path) -> None:
    """A set that is deleted under them, or replaced, is theirs until they end."""
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


async def test_a_set_is_changed_only_as_its_writer_knows_it(tmp_path: Path) -> None:
    """If-Match and If-None-Match, for writing and deleting; what fails changes nothing."""
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
    """Of those that know the same version one wins; without conditions all succeed, one after the other."""
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


async def test_a_label_that_is_too_long(tmp_path: Path) -> None:
    """A small set with one is refused; a large one fails with the reason, and can be mended by writing it anew."""
    long = "word " * 100
    async with replica(tmp_path, label_set_inline_prompts=100) as one:
        with pytest.raises(PromptTooLong, match="Label 1 "):
            await one.put("s", "a", long)
        with pytest.raises(PromptTooLong, match="Label 1 "):
            await one.put("s", "a", "b", b=["fine", long])
        with pytest.raises(UnknownLabelSet):
            await one.sets.status("s")
        labels = [*many(BLOCK + 5), long, "b"]
        await one.put("s", *labels)

        async def failed() -> bool:
            return await one.state("s") == "failed"

        await until(failed)
        status = await one.sets.status("s")
        assert f"Label {BLOCK + 5} " in str(status.models[0].reason)
        assert status.retry_after_s is None
        with pytest.raises(LabelSetFailed, match=f"Label {BLOCK + 5} "):
            await one.classify("s")
        again, _ = await one.sets.put("s", one.definition(*labels))
        assert "computing" == again.state
        await one.put("s", "short")
        assert 1 == (await one.classify("s")).labels


@pytest.mark.parametrize("described", [False, True])
async def test_a_label_is_counted_over_the_whole_set(tmp_path: Path, described: bool) -> None:
    """However a set is divided for computing: with many templates it is in small parts."""
    templates = [f"{{}} {number}" for number in range(50)]
    labels = many(200)
    descriptions = {label: [label, f"the {label}"] for label in labels[100:]} if described else {}
    if described:
        descriptions[labels[170]] = ["fine", "word " * 100]
    else:
        labels[170] = "word " * 100
    async with replica(tmp_path, label_set_inline_prompts=100_000) as one:
        with pytest.raises(PromptTooLong, match="Label 170 ") as caught:
            await one.sets.put("s", one.definition(*labels, templates=templates, **descriptions))
        assert 170 == caught.value.index


async def test_a_driver_that_stumbles_does_not_lose_a_large_set(tmp_path: Path) -> None:
    """A batch that fails once is tried again."""
    async with replica(tmp_path, label_set_inline_prompts=0) as one:
        failures = [1]

        def fail(kind: str, batch: Any) -> None:
            if failures:
                failures.pop()
                raise RuntimeError("driver trouble")

        one.engine.before = fail
        await one.put("s", "a", "b")
        await ready(one, "s")
        assert 2 == (await one.classify("s")).labels


async def test_redis_goes_away(tmp_path: Path) -> None:
    """Writing fails; labels, and sets in memory, are classified all the same; what is not in memory waits for it."""
    with running_redis(tmp_path) as redis:
        store = RedisStateStore(redis.url, timeout_s=0.5)
        async with replica(tmp_path, store) as one:
            await one.put("known", "a", "b")
            await one.put("cold", "c")
            await one.classify("known")
            await asyncio.sleep(1.1)  # so that the version must be looked at again
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
    """Other labels than the head tells of, vectors of another size, not finite or not of unit length."""
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
    """Whoever asks for the set is told; the list of sets, which cannot be complete, too."""
    store = DirectoryStateStore(tmp_path / "state")
    await store.put("label-sets/s", b'{"version": "1"}', expected=None)
    async with replica(tmp_path, store) as one:
        for use in (one.classify("s"), one.sets.status("s"), one.sets.page()):
            with pytest.raises(StateCorrupt, match="label-sets/s"):
                await use
    await store.close()


async def test_content_without_a_head_is_deleted_by_a_later_start(tmp_path: Path) -> None:
    """A writer was killed between content and head: an hour later nobody needs it; a younger one may still write."""
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
    """A store that fails where it is told to.

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
    """Wait until there is content of these versions and of no other."""

    async def is_so() -> bool:
        return {version for _, version in await LabelSetStorage(store).contents()} == set(versions)

    await until(is_so)


@pytest.mark.parametrize("stays", [0, 2])
@pytest.mark.parametrize("part", ["/definition", "/vectors/"])
async def test_a_write_that_fails_leaves_nothing(tmp_path: Path, part: str, stays: int) -> None:
    """What it has written is deleted at once, or when the store answers again. The set stays as it was."""
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
    """Its client has gone, or it took too long: it is cancelled in its middle."""
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
    """A store on which a write comes to its end just after its blobs were deleted, once."""

    late: str | None = None

    async def delete_blobs(self, prefix: str) -> None:
        """See `StateStore`."""
        await super().delete_blobs(prefix)
        if self.late is not None:
            key, self.late = self.late, None
            await self.put_blob(key, b"late")


async def test_a_blob_that_comes_late_is_deleted_too(tmp_path: Path) -> None:
    """A write that was cancelled may still be under way when what was there is deleted."""
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
    """What it does not name when that is settled is deleted, the new content or the old."""
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
    """Content of a set that is gone does not stay; that of one that is not does."""
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


async def test_sets_are_listed_by_name_in_pages(tmp_path: Path) -> None:
    """Each page says where the next begins."""
    async with replica(tmp_path) as one:
        for name in ("b", "a", "c"):
            await one.put(name, name)
        first, following = await one.sets.page(limit=2)
        assert (["a", "b"], "b") == ([each.name for each in first], following)
        last, end = await one.sets.page(after="b", limit=2)
        assert (["c"], None) == ([each.name for each in last], end)


async def test_there_is_a_limit_of_sets(tmp_path: Path) -> None:
    """One more is refused; one that is there can be changed, and where one goes another may come."""
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
    """It never reaches the store."""
    async with replica(tmp_path) as one:
        for use in (one.classify(name), one.sets.status(name), one.sets.delete(name)):
            with pytest.raises(UnknownLabelSet):
                await use


async def test_a_template_set_is_looked_up_when_the_set_is_written(tmp_path: Path) -> None:
    """A set whose templates no model has is refused."""
    async with replica(tmp_path) as one:
        with pytest.raises(InvalidTemplates):
            await one.put("s", "a", templates="nowhere")
        assert "default" == (await one.put("s", "a", templates=None)).head.templates


@pytest.mark.parametrize(
    ("error", "labels", "descriptions", "templates"),
    [
        (InvalidLabels, [], {}, None),
        (InvalidLabels, ["a", " a"], {}, None),
        (InvalidLabels, ["\ud800"], {}, None),
        (InvalidLabels, ["a" * 1_001], {}, None),
        (InvalidLabels, ["a"], {0: []}, None),
        (InvalidLabels, ["a"], {0: ["x", " x "]}, None),
        (TooManyLabels, [str(number) for number in range(21)], {}, None),
        (TooManyLabels, ["a"], {0: [str(number) for number in range(101)]}, None),
        (TooManyLabels, ["a", "b"], {0: [str(number) for number in range(60)]}, ["{}", "a {}"]),
        (InvalidTemplates, ["a"], {}, []),
        (InvalidTemplates, ["a"], {}, ["no place"]),
    ],
)
def test_what_cannot_be_a_set(error: type[AnyclassError], labels: Any, descriptions: Any, templates: Any) -> None:
    """The limits of a request's labels hold for a set's, with a count of its own."""
    settings = Settings(max_label_set_labels=20, max_label_set_prompts=100)
    with pytest.raises(error):
        check_definition(labels, descriptions, templates, settings)


TEXT = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=5).filter(str.strip)


@given(
    labels=st.lists(TEXT, min_size=1, max_size=5, unique_by=lambda text: " ".join(text.split())),
    described=st.dictionaries(st.integers(0, 4), st.lists(TEXT, min_size=1, max_size=3), max_size=3),
    templates=st.one_of(st.none(), st.just("none"), st.lists(st.just("a {}"), min_size=1, max_size=3)),
)
def test_a_definition_is_read_as_it_was_written(labels: Any, described: Any, templates: Any) -> None:
    """Any that passes the checks, and its digest says what is in it."""
    try:
        descriptions = {index: texts for index, texts in described.items() if index < len(labels)}
        definition = check_definition(labels, descriptions, templates, Settings())
    except InvalidLabels:
        return
    read = definition_from_json(definition.to_json())
    assert definition == read
    assert definition.digest() == read.digest()
    assert definition.text_count == sum(len(each) for each in read.texts(0, len(labels)))


def which(name: str, version: str = "1") -> Which:
    """Name somebody's vectors."""
    return Which(name, version, "n")


def test_sets_in_memory_are_bounded_by_bytes() -> None:
    """The one unused for longest goes first; one that is too large by itself is never kept; one version of each."""

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
    """Records of one set, which may be away, slow, or another."""

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
    """However many requests there are; a store that is away or slow leaves the version that was seen."""
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
    """Records that have been read but not handed over until the gate is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def head(self, name: str) -> StoredHead | None:
        """See `LabelSetStorage`."""
        found = await super().head(name)
        await self.gate.wait()
        return found


async def test_what_is_written_here_is_newer_than_what_was_being_read() -> None:
    """A read that began before a write, or a deletion, does not bring the old version back."""
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


async def test_the_definition_on_disk_is_plain_json(tmp_path: Path) -> None:
    """So that it can be read, and never runs anything."""
    async with replica(tmp_path) as one:
        status = await one.put("s", "a", "b", b=["x"])
        store = DirectoryStateStore(tmp_path / "state")
        content = await store.get_blob(f"label-sets/s/{status.head.version}/definition")
        await store.close()
    expected = {"schema": 1, "templates": "none", "labels": ["a", "b"], "descriptions": {"1": ["x"]}}
    assert content is not None
    assert expected == json.loads(content)


async def test_a_batch_uses_a_set_too(tmp_path: Path) -> None:
    """In the background lane."""
    async with replica(tmp_path) as one:
        await one.put("s", "a", "b")
        query = LabelQuery((), label_set="s")
        answers = [
            answer
            async for _, answer in one.classifier.classify_many([picture(), picture("blue")], query, ScoringOptions())
        ]
        assert [2, 2] == [answer.labels for answer in answers if isinstance(answer, Classification)]
        assert 0 == one.model.texts[Lane.BACKGROUND].occupied
