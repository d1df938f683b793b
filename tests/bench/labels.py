"""Measure the cost of labels inside the process, without HTTP: cached, from Redis in a fresh process, and new.

    python -m tests.bench.labels BUNDLE [--json]

Everything is the service's own code except for the image encoder, which answers at once, so that a millisecond for
labels exceeds its noise. `labelling.py` measures the same over HTTP. Starts a redis-server on a free port.
"""

import argparse
import asyncio
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.api.request.fields import read_options
from service.api.request.strict_json import parse_json_object
from service.classification.classifier import Classifier
from service.classification.pipeline import Pipeline
from service.classification.types import LabelQuery, ScoringOptions, Timings
from service.inference.registry import ModelRegistry
from service.inference.served_model import Model
from service.labels.cache_keys import class_vector_keys, vector_identity
from service.model.arrays import Vectors
from service.model.engine.engine import OnnxEngine
from service.model.loading import Bundle, load_bundle
from service.monitoring.metrics import Metrics
from service.settings import Settings
from service.vector_cache.opening import open_caches
from service.vector_cache.redis_cache import RedisVectorCache
from tests.support.redis_server import running_redis

MANY: Final = 1_000
FEW: Final = 2
SET: Final = 100_000
_ROUNDS: Final = 200
_FRESH: Final = 7
_TOP: Final = ScoringOptions(top_k=5)
_BATCHES: Final = (8, 16, 32, 64, 128)
_PADDED: Final = 32


class Texts:
    """Joins the bundle's text encoder with an image encoder that costs nothing."""

    def __init__(self, engine: OnnxEngine) -> None:
        self._engine = engine
        self.dim = engine.dim
        self.provider = engine.provider
        self.precision = engine.precision
        self.provider_reason = engine.provider_reason
        self.chosen_by = engine.chosen_by
        self.cpu_threads = engine.cpu_threads

    def encode_images(self, pixels: npt.NDArray[np.uint8]) -> Vectors:
        """Return the same unit vector for every image."""
        return np.full((len(pixels), self.dim), self.dim**-0.5, np.float32)

    def encode_texts(self, ids: npt.NDArray[np.int64]) -> Vectors:
        """Encode as the bundle does."""
        return self._engine.encode_texts(ids)

    def close(self) -> None:
        """Do nothing: the caller closes its engine."""


class Service:
    """A classifier with the empty caches of a fresh process."""

    def __init__(self, bundle: Bundle, engine: OnnxEngine, **settings: Any) -> None:
        chosen, self._metrics = Settings(**settings), Metrics()
        self._registry = ModelRegistry.of([(bundle, Texts(engine))], chosen, self._metrics)
        self._registry.warm()
        self.cache = open_caches(chosen, self._metrics).texts
        self.pipeline = Pipeline(self._registry, self.cache, chosen, self._metrics)
        self.classifier = Classifier(self.pipeline, chosen, self._metrics)
        self.model = self._registry.get()

    async def classify(self, image: bytes, labels: tuple[str, ...]) -> None:
        """Send one request, with the label itself as prompt so that both have the same length."""
        await self.classifier.classify(image, LabelQuery(labels, ("{}",)), _TOP)

    async def close(self) -> None:
        """Close the classifier."""
        await self.classifier.close()
        await self._registry.close()
        await self.cache.close()


async def seconds(work: Callable[[], Awaitable[object]]) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


def labels(count: int, start: int = 0) -> tuple[str, ...]:
    """Return distinct short labels; the words do not affect the time."""
    return tuple(f"thing {number:06d}" for number in range(start, start + count))


async def cached(bundle: Bundle, engine: OnnxEngine, image: bytes) -> dict[str, Any]:
    """Return the median seconds of requests with few and many cached labels, in turns with JSON; and the difference."""
    service = Service(bundle, engine)
    found: dict[int, list[float]] = {FEW: [], MANY: []}
    bodies = {count: json.dumps({"labels": labels(count), "templates": ["{}"], "top_k": 5}).encode() for count in found}
    settings = Settings()

    async def request(count: int) -> None:
        options = read_options(parse_json_object(bodies[count]), settings)
        await service.classifier.classify(image, options.query(), options.scoring_options())

    for count in (*found, *found):
        await request(count)
    for _ in range(_ROUNDS):
        for count, times in found.items():
            times.append(await seconds(lambda count=count: request(count)))  # type: ignore[misc]
    await service.close()
    medians = {count: statistics.median(times) for count, times in found.items()}
    return {"few_s": medians[FEW], "many_s": medians[MANY], "extra_s": medians[MANY] - medians[FEW]}


async def from_redis(bundle: Bundle, engine: OnnxEngine, image: bytes) -> dict[str, Any]:
    """Return the seconds of `get_many`, and of a whole request in a fresh process, for labels in Redis."""
    with tempfile.TemporaryDirectory() as folder, running_redis(Path(folder)) as server:
        first = Service(bundle, engine, redis_url=server.url, redis_timeout_ms=200)
        await first.classify(image, labels(MANY))
        await first.close()
        whole, read = [], []
        for _ in range(_FRESH):
            fresh = Service(bundle, engine, redis_url=server.url, redis_timeout_ms=200)
            await fresh.classify(image, labels(1))  # opens the connection
            whole.append(await seconds(lambda fresh=fresh: fresh.classify(image, labels(MANY))))  # type: ignore[misc]
            await fresh.close()
        client = RedisVectorCache(server.url, Metrics(), timeout_s=1.0)
        keys = _keys(first.model, labels(MANY))
        await client.get_many(keys[:1], dim=engine.dim)
        for _ in range(_FRESH * 3):
            started = time.perf_counter()
            vectors = await client.get_many(keys, dim=engine.dim)
            read.append(time.perf_counter() - started)
            if any(vector is None for vector in vectors):
                raise RuntimeError("a label that was written is not in Redis")
        await client.close()
    return {"get_many_s": statistics.median(read), "request_s": statistics.median(whole)}


async def cold(bundle: Bundle, engine: OnnxEngine) -> dict[str, Any]:
    """Return texts a second of new labels, by batch size and through the service, trimmed and padded to the context."""
    service = Service(bundle, engine)
    tokenizer = service.model.tokenizer
    texts = labels(MANY, start=MANY)
    ids = tokenizer.encode(texts)
    rates = {size: size / _best(lambda size=size: engine.encode_texts(ids[:size])) for size in _BATCHES}  # type: ignore[misc]
    context = bundle.manifest.text.max_length
    padding = ((0, 0), (0, context - ids.shape[1]))
    padded = np.pad(ids[:_PADDED], padding, constant_values=bundle.manifest.text.pad_id)
    padded_rate = _PADDED / _best(lambda: engine.encode_texts(padded), times=2)
    whole = await seconds(lambda: service.pipeline.label_matrix(service.model, texts, ("{}",), Timings()))
    await service.close()
    return {
        "tokens": ids.shape[1],
        "texts_per_s_by_batch": rates,
        "padded_texts_per_s": padded_rate,
        "service_s": whole,
        "service_texts_per_s": MANY / whole,
        "ratio_to_padded": MANY / whole / padded_rate,
    }


async def large_set(bundle: Bundle, engine: OnnxEngine) -> dict[str, Any]:
    """Return the seconds to build the matrix of 100,000 known labels, and the longest pause of the event loop."""
    service = Service(bundle, engine, cache_max_entries=2 * SET)
    names = labels(SET)
    vectors = np.random.default_rng(0).normal(size=(SET, engine.dim)).astype(np.float32)
    keys = _keys(service.model, names)
    await service.cache.set_many(dict(zip(keys, vectors, strict=True)))
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0)
            longest = max(longest, time.perf_counter() - before)

    watcher = asyncio.create_task(watch())
    first = await seconds(lambda: service.pipeline.label_matrix(service.model, names, ("{}",), Timings()))
    again = await seconds(lambda: service.pipeline.label_matrix(service.model, names, ("{}",), Timings()))
    watcher.cancel()
    await asyncio.gather(watcher, return_exceptions=True)
    await service.close()
    return {"first_s": first, "again_s": again, "loop_held_s": longest}


def _best(work: Callable[[], object], times: int = 3) -> float:
    found = []
    for _ in range(times + 1):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found[1:])


def _keys(model: Model, names: tuple[str, ...]) -> list[str]:
    identity = vector_identity(model.manifest.text_revision, model.numerics, ("{}",))
    return class_vector_keys(Settings().cache_prefix, identity, names)


async def measure(path: Path, provider: str) -> dict[str, Any]:
    """Run every measurement on one bundle."""
    bundle = load_bundle(path)
    engine = OnnxEngine.load(bundle, provider)
    side = bundle.manifest.image
    stream = io.BytesIO()
    Image.new("RGB", (side.width, side.height), "red").save(stream, "JPEG")
    image = stream.getvalue()
    try:
        return {
            "cached": await cached(bundle, engine, image),
            "redis": await from_redis(bundle, engine, image),
            "cold": await cold(bundle, engine),
            "set": await large_set(bundle, engine),
        }
    finally:
        engine.close()


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--json", action="store_true", help="as JSON, seconds and rates")
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments.bundle, arguments.provider))
    if arguments.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    near, far, new, large = (found[part] for part in ("cached", "redis", "cold", "set"))
    rates = ", ".join(f"{size}: {rate:.0f}" for size, rate in new["texts_per_s_by_batch"].items())
    sys.stdout.write(
        f"cached: {FEW} labels {near['few_s'] * 1e3:.2f} ms, {MANY} labels {near['many_s'] * 1e3:.2f} ms, "
        f"{near['extra_s'] * 1e3:.2f} ms more\n"
        f"from Redis: {MANY} vectors {far['get_many_s'] * 1e3:.2f} ms; a request in a fresh process "
        f"{far['request_s'] * 1e3:.2f} ms\n"
        f"new, {new['tokens']} tokens: texts/s by batch {rates}; padded to the context "
        f"{new['padded_texts_per_s']:.0f}; through the service "
        f"{new['service_texts_per_s']:.0f}, {new['ratio_to_padded']:.1f} times as many\n"
        f"{SET} known labels: {large['first_s']:.2f} s, again {large['again_s'] * 1e3:.1f} ms; "
        f"the event loop stood still for {large['loop_held_s'] * 1e3:.0f} ms at most\n"
    )


if __name__ == "__main__":
    main()
