"""A classifier on a fake or real engine, assembled as in the application."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from service.classification.classifier import Classifier
from service.classification.pipeline import Pipeline
from service.classification.types import Classification, LabelQuery, ScoringOptions
from service.inference.registry import ModelRegistry
from service.model.engine.engine import Engine, OnnxEngine
from service.model.loading import load_bundle
from service.monitoring.metrics import Metrics
from service.settings import Settings
from service.vector_cache.caches import VectorCache
from service.vector_cache.opening import open_caches
from tests.support.fake_engine import FakeEngine
from tests.support.tiny_bundle import write_tiny_bundle


@dataclass
class Rig:
    """All parts of one classifier."""

    classifier: Classifier
    pipeline: Pipeline
    engine: FakeEngine
    registry: ModelRegistry
    metrics: Metrics
    cache: VectorCache

    async def classify(self, *labels: str, image: bytes | None = None, **options: Any) -> Classification:
        """Classify a red picture, or another."""
        query = LabelQuery(labels, options.pop("templates", "none"))
        keywords = {name: options.pop(name) for name in ("model", "timings") if name in options}
        return await self.classifier.classify(image or picture("red"), query, ScoringOptions(**options), **keywords)

    def count(self, name: str, **labels: str) -> float:
        """Return a metric's value, or 0 if it has none yet."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def classifying(
    path: Path, *, engine: Engine | None = None, bundle: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Rig]:
    """Yield a warm classifier on the tiny bundle, and close it."""
    fake = FakeEngine()
    chosen = Settings(**settings)
    metrics = Metrics()

    def load() -> ModelRegistry:
        loaded = load_bundle(write_tiny_bundle(path, **(bundle or {})))
        registry = ModelRegistry.of([(loaded, engine or fake)], chosen, metrics)
        registry.warm()
        return registry

    registry = await asyncio.to_thread(load)
    cache, images = open_caches(chosen, metrics)
    pipeline = Pipeline(registry, cache, chosen, metrics, images=images)
    classifier = Classifier(pipeline, chosen, metrics)
    try:
        yield Rig(classifier, pipeline, fake, registry, metrics, cache)
    finally:
        fake.gate.set()
        await classifier.close()
        await registry.close()
        await cache.close()


def tiny_engine(path: Path, **options: Any) -> OnnxEngine:
    """Run ONNX Runtime on a tiny bundle written to `path`."""
    return OnnxEngine.load(load_bundle(write_tiny_bundle(path, **options)), "cpu", threads=1)


def picture(colour: str = "red", size: int = 8) -> bytes:
    """Return a PNG of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(stream, "PNG")
    return stream.getvalue()


async def until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], *, within_s: float = 60.0) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(within_s):
        while True:
            outcome = condition()
            if outcome if isinstance(outcome, bool) else await outcome:
                return
            await asyncio.sleep(0.005)
