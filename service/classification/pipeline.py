"""The pipeline under classification and embedding: model lookup, deadline, decoding, encoding, label vectors."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from service.classification.image_vectors import ImageVectors, Seen
from service.classification.types import ImageSource, Timings, load_image
from service.concurrency import pause
from service.errors import AnyclassError, DeadlineExceeded, NotReady
from service.images.decode_pool import DecodePool
from service.images.decoding import ImageLimits
from service.inference.registry import ModelRegistry
from service.inference.served_model import Model
from service.labels.vectors import LabelMatrix, LabelVectors
from service.lanes import Lane
from service.model.arrays import Pixels, Vectors
from service.model.engine.cpus import available_cpus
from service.model.prompts import validate_templates
from service.monitoring.metrics import Metrics
from service.monitoring.usage import add_work
from service.settings import Settings
from service.vector_cache.caches import VectorCache

_CPUS: Final = available_cpus()  # at import, because it reads files, which would block the event loop
_MAX_FETCHED: Final = 64
"""Background images from URLs that are being fetched or not yet answered; each may have the largest size."""


class Pipeline:
    """Turns images and labels into vectors, and counts the requests at work. Belongs to one event loop.

    Closes neither the models nor the caches.

    Attributes:
        label_vectors: class vectors of all models.
    """

    def __init__(
        self,
        models: ModelRegistry,
        text_cache: VectorCache,
        settings: Settings,
        metrics: Metrics,
        *,
        images: VectorCache | None = None,
    ) -> None:
        """Use models and caches; `images` keeps the vectors of images, None keeps none."""
        self.label_vectors = LabelVectors(
            text_cache, metrics, prefix=settings.cache_prefix, matrices_bytes=settings.cache_matrices_mib * 2**20
        )
        self._image_vectors = ImageVectors(images, settings, metrics)
        self._models = models
        self._settings = settings
        self._metrics = metrics
        # Admission counts images by model, so all models together can have no more than this.
        most_of_a_model = settings.max_waiting + settings.max_batch_images + 2 * settings.max_batch
        self._decoders = DecodePool(
            settings.decode_threads or _CPUS,
            limits=ImageLimits(max_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels),
            preprocessing=settings.preprocessing,
            profiles=settings.colour_profiles,
            most_waiting=most_of_a_model * len(models.names),
            background_every=settings.background_every,
        )
        self._fetched = asyncio.Semaphore(_MAX_FETCHED)
        self._closing = False
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def model(self, name: str | None) -> Model:
        """Return a model by name or alias, the default if None. Raises NotReady and UnknownModel."""
        if self._closing or not self._models.ready:
            state = "stopping" if self._closing else "starting"
            raise NotReady(f"The service is {state}; try again shortly.")
        return self._models.get(name)

    def templates(self, model: Model, templates: str | tuple[str, ...]) -> tuple[str, ...]:
        """Return the model's template set of that name, or the given templates. Raises InvalidTemplates."""
        if isinstance(templates, str):
            return model.template_set(templates)
        settings = self._settings
        return validate_templates(templates, max_templates=settings.max_templates, max_chars=settings.max_label_chars)

    @contextmanager
    def accepted(self) -> Iterator[None]:
        """Count a request as active, so that `drain` waits for it."""
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    @contextmanager
    def counted(self, model: Model, images: int = 1) -> Iterator[None]:
        """Count the outcome of `images` images of one request."""
        outcome = "cancelled"
        try:
            yield
            outcome = "ok"
        except AnyclassError as exc:
            outcome = type(exc).__name__
            raise
        except Exception:
            outcome = "error"
            raise
        finally:
            self._metrics.images.labels(model.name, outcome).inc(images)
            if outcome == "ok":
                add_work(model.name, images=images)

    @asynccontextmanager
    async def deadline(self) -> AsyncIterator[float]:
        """Apply the request timeout; yield the deadline as a `time.monotonic` value. Raises DeadlineExceeded."""
        limit_s = self._settings.request_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                yield time.monotonic() + limit_s
        except TimeoutError as exc:
            raise DeadlineExceeded(f"No answer within {limit_s:g} s; try again later, or with fewer labels.") from exc

    @asynccontextmanager
    async def loaded(self, source: ImageSource) -> AsyncIterator[bytes]:
        """Load a background image; hold a place among the fetched ones while the block runs. Raises as `load_image`."""
        if isinstance(source, bytes | AnyclassError):
            yield await load_image(source)
            return
        async with self._fetched:
            yield await load_image(source)

    async def seen(self, image: bytes, model: Model) -> Seen:
        """Look up an encoded image among those seen before. Never raises."""
        return await self._image_vectors.look_up(image, model)

    async def embed(
        self,
        image: bytes,
        model: Model,
        timings: Timings,
        *,
        lane: Lane,
        deadline: float,
        seen: Seen | None = None,
        on_dequeued: Callable[[], None] | None = None,
    ) -> Vectors:
        """Return an encoded image's vector, float32 `[dim]`: a known one, or a new one, which is kept.

        Args:
            seen: what `seen` returned, if it was asked before.
            on_dequeued: called when the image leaves the queue, or needs none.

        Raises: as `decode` and `encode`.
        """
        seen = seen or await self.seen(image, model)
        if seen.vector is not None:
            if on_dequeued is not None:
                on_dequeued()
            return seen.vector
        pixels = await self.decode(image, model, timings, lane=lane)
        vector = await self.encode(pixels, model, timings, lane=lane, deadline=deadline, on_dequeued=on_dequeued)
        self._image_vectors.keep(seen, vector, model, timings)
        return vector

    async def decode(self, image: bytes, model: Model, timings: Timings, *, lane: Lane) -> Pixels:
        """Decode an image for `model` → uint8 `[height, width, 3]`. Raises as `DecodePool.decode`."""
        started = time.monotonic()
        with self._metrics.decode_waiting.track_inprogress():
            pixels = await self._decoders.decode(image, model.manifest.image, lane=lane)
        timings.decode_s = time.monotonic() - started
        self._metrics.spent(model.name, "decode", timings.decode_s)
        return pixels

    async def encode(
        self,
        pixels: Pixels,
        model: Model,
        timings: Timings,
        *,
        lane: Lane,
        deadline: float,
        on_dequeued: Callable[[], None] | None = None,
    ) -> Vectors:
        """Encode uint8 `[height, width, 3]` → float32 `[dim]`. Raises as `Model.encode_image`."""
        done = await model.encode_image(pixels, lane=lane, deadline=deadline, on_dequeued=on_dequeued)
        timings.queue_s, timings.image_s = done.queue_s, done.run_s
        self._metrics.spent(model.name, "queue", done.queue_s)
        self._metrics.spent(model.name, "image", done.run_s)
        vector: Vectors = done.vectors[0]
        return vector

    async def label_matrix(
        self,
        model: Model,
        labels: tuple[str, ...],
        templates: tuple[str, ...],
        timings: Timings,
        *,
        lane: Lane = Lane.INTERACTIVE,
        deadline: float = float("inf"),
        digest: bytes | None = None,
    ) -> LabelMatrix:
        """Return the class vectors of normalised labels. Arguments and errors are those of `LabelVectors.matrix`."""
        started = time.monotonic()
        matrix = await self.label_vectors.matrix(model, labels, templates, lane=lane, deadline=deadline, digest=digest)
        timings.text_s = time.monotonic() - started
        self._metrics.spent(model.name, "text", timings.text_s)
        return matrix

    async def drain(self) -> None:
        """Refuse new requests, and wait for the active ones, `drain_timeout_s` at most."""
        self._closing = True
        await pause(self._idle, self._settings.drain_timeout_s)

    async def close(self) -> None:
        """Stop computing. Call `drain` first."""
        await self.label_vectors.close()
        await self._image_vectors.close()
        self._decoders.close()
