"""Vectors of pictures that were seen before, by the bytes of their files."""

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Final

from service.classification.types import Timings
from service.concurrency import run_off_loop
from service.inference.served_model import Model
from service.model.arrays import Vectors
from service.monitoring.metrics import Metrics
from service.settings import Settings
from service.vector_cache.caches import VectorCache

_MANY_BYTES: Final = 2**18
"""Bytes that are hashed in a thread: 256 KiB take less than a millisecond."""
_FORMAT: Final = b"image 1"
"""Version of the form of stored values (`vector_cache/redis_cache.py`), so that no version reads another's."""
_WEIGHT: Final = 0.05
"""Of the newest picture in the mean time of a picture."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a picture: its key, if vectors are kept, and its vector, float32 `[dim]`, if it was seen."""

    key: str | None = None
    vector: Vectors | None = None


class ImageVectors:
    """Keeps the vectors of pictures, and counts the time that this saves. Belongs to one event loop."""

    def __init__(self, cache: VectorCache | None, settings: Settings, metrics: Metrics) -> None:
        """Keep them in `cache`, which stays open; None keeps none."""
        self._cache = cache
        self._metrics = metrics
        self._prefix = settings.cache_prefix
        # Both change the pixels that an encoder gets.
        self._preparation = f"{settings.preprocessing}/{settings.colour_profiles}"
        self._mean_s: dict[str, float] = {}
        self._writes: set[asyncio.Task[None]] = set()

    async def look_up(self, image: bytes, model: Model) -> Seen:
        """Look up an encoded image. Never raises because of the cache."""
        if self._cache is None:
            return Seen()
        digest = await run_off_loop(len(image), lambda: hashlib.sha256(image).digest(), many=_MANY_BYTES)
        key = self._key(digest, model)
        (vector,) = await self._cache.get_many([key], dim=model.manifest.dim)
        if vector is not None:
            self._metrics.image_saved_seconds.labels(model.name).inc(self._mean_s.get(model.name, 0.0))
        return Seen(key, vector)

    def keep(self, seen: Seen, vector: Vectors, model: Model, timings: Timings) -> None:
        """Keep a new picture's vector; a far cache is written to in the background."""
        if self._cache is None or seen.key is None:
            return
        took_s = timings.decode_s + timings.image_s
        before_s = self._mean_s.get(model.name, took_s)
        self._mean_s[model.name] = before_s + _WEIGHT * (took_s - before_s)
        write = asyncio.get_running_loop().create_task(self._cache.set_many({seen.key: vector}), name="image-vector")
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)

    async def close(self) -> None:
        """Finish writing."""
        await asyncio.gather(*self._writes, return_exceptions=True)

    def _key(self, digest: bytes, model: Model) -> str:
        parts = (model.manifest.revision, model.numerics, self._preparation)
        whole = hashlib.sha256(_FORMAT + "\0".join(parts).encode() + b"\0" + digest)
        return self._prefix + whole.hexdigest()
