"""A replica of the service, reduced to its label sets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.classification.classifier import Classifier
from service.classification.pipeline import Pipeline
from service.classification.types import Classification, LabelQuery, ScoringOptions
from service.inference.registry import ModelRegistry
from service.inference.served_model import Model
from service.label_sets.definition import Definition, check_definition
from service.label_sets.status import LabelSetStatus
from service.label_sets.use_cases import LabelSets
from service.model.loading import load_bundle
from service.monitoring.metrics import Metrics
from service.settings import Settings
from service.state.directory import DirectoryStateStore
from service.state.protocol import StateStore
from service.vector_cache.caches import MemoryVectorCache
from tests.support.classifying import picture, until
from tests.support.fake_engine import FakeEngine
from tests.support.tiny_bundle import write_tiny_bundle


@dataclass
class Replica:
    """A process of the service, reduced to its label sets."""

    classifier: Classifier
    pipeline: Pipeline
    engine: FakeEngine
    settings: Settings

    @property
    def sets(self) -> LabelSets:
        """Return its label sets."""
        return self.classifier.label_sets

    @property
    def model(self) -> Model:
        """Return its model."""
        return self.pipeline.model(None)

    def definition(self, *labels: str, templates: Any = "none", **descriptions: list[str]) -> Definition:
        """Return a definition of these labels; `descriptions` by label."""
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
        """Return the state of a set."""
        return (await self.sets.status(name)).state


@asynccontextmanager
async def replica(
    path: Path, store: StateStore | None = None, *, start: bool = True, **options: Any
) -> AsyncIterator[Replica]:
    """Open a replica on the state in `path`, or on `store`."""
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
    pipeline = Pipeline(registry, MemoryVectorCache(100_000, metrics), settings, metrics)
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


def many(count: int) -> list[str]:
    """Return `count` different labels."""
    return [f"label {number}" for number in range(count)]


async def ready(each: Replica, name: str) -> None:
    """Wait until a set is ready."""

    async def is_ready() -> bool:
        return await each.state(name) == "ready"

    await until(is_ready)
