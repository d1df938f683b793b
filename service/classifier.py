"""The use case: an image and labels in, ranked scores out."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from service.batching import Lane, Vectors
from service.class_vectors import check_scoring, cosines, rank, scores
from service.classification import Classification, LabelQuery, Prediction, ScoringOptions, Timings
from service.concurrency import both
from service.errors import AnyclassError, DeadlineExceeded, NotReady, Overloaded
from service.images import ImageLimits, decode
from service.label_vectors import LabelMatrix, LabelVectors
from service.metrics import Metrics
from service.models import Model, ModelRegistry
from service.prompts import normalise_labels, validate_templates
from service.providers import available_cpus
from service.settings import Settings
from service.text_cache import TextCache

__all__ = ["Classification", "Classifier", "LabelQuery", "Prediction", "ScoringOptions", "Timings"]

T = TypeVar("T")

_MANY_LABELS: Final = 1_024
"""Labels from which on checking and ranking them is left to a thread."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A request that passed every check that costs nothing."""

    model: Model
    query: LabelQuery
    labels: tuple[str, ...]
    templates: tuple[str, ...]
    options: ScoringOptions
    lane: Lane


class Classifier:
    """Classifies images. Belongs to one event loop; closes neither the models nor the cache."""

    def __init__(self, models: ModelRegistry, text_cache: TextCache, settings: Settings, metrics: Metrics) -> None:
        self._models = models
        self._settings = settings
        self._metrics = metrics
        self._limits = ImageLimits(max_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels)
        self._label_vectors = LabelVectors(
            text_cache, metrics, prefix=settings.cache_prefix, matrices_bytes=settings.cache_matrices_mib * 2**20
        )
        threads = settings.decode_threads or available_cpus()
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="anyclass-decode")
        self._helpers = ThreadPoolExecutor(1, thread_name_prefix="anyclass-score")
        self._closing = False
        self._active = 0
        self._batch_requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def check_admission(self, model: str | None = None) -> None:
        """Raise what `classify` would raise of Overloaded, NotReady and UnknownModel: before a body is read."""
        self._model(model).images.check()

    async def classify(
        self,
        image: bytes,
        query: LabelQuery,
        options: ScoringOptions,
        *,
        model: str | None = None,
        timings: Timings | None = None,
    ) -> Classification:
        """Classify one image.

        Args:
            image: an encoded image.
            query: labels and templates.
            options: how to score.
            model: name or alias; the default if None.
            timings: filled in as stages end.

        Raises:
            InvalidRequest: in the labels, templates, options or image.
            UnsupportedImageFormat: not an image of an accepted format.
            PayloadTooLarge: the image has too many bytes.
            TooManyLabels: more than the limit.
            UnknownModel: no such model.
            Overloaded: too much waits.
            NotReady: starting or stopping.
            DeadlineExceeded: it took longer than `request_timeout_s`.
            InferenceFailed: the model failed.
        """
        timings = timings or Timings()
        chosen = self._model(model)
        with self._accepted(), self._counted(chosen):
            async with self._deadline() as deadline:
                job = await self._check(chosen, query, options, Lane.INTERACTIVE)
                place = chosen.images.enter()
                try:
                    vector, matrix = await both(
                        self._embed(job, image, timings, deadline, place.leave), self._labels(job, timings)
                    )
                finally:
                    place.leave()
                return await self._score(job, vector, matrix, timings)

    async def classify_many(
        self,
        images: AsyncIterator[bytes] | Sequence[bytes],
        query: LabelQuery,
        options: ScoringOptions,
        *,
        model: str | None = None,
    ) -> AsyncIterator[tuple[int, Classification | AnyclassError]]:
        """Classify images in the background lane: yields `(index, answer or error)` in order, as soon as known.

        However many images there are, only two batches of them are in work at any time. What is wrong with the request
        as a whole is raised before the first answer. To stop early close the iterator (`contextlib.aclosing`): work
        under way is dropped.

        Raises: as `classify`, but for what concerns a single image.
        """
        chosen = self._model(model)
        if self._batch_requests >= self._settings.max_batch_requests:
            raise Overloaded("Too many batch requests are running; try again later.", chosen.images.retry_after_s())
        self._batch_requests += 1
        try:
            with self._accepted():
                async with self._deadline():
                    job = await self._check(chosen, query, options, Lane.BACKGROUND)
                    matrix = await self._labels(job, Timings())
                in_work = 2 * chosen.max_batch
                answers: asyncio.Queue[asyncio.Task[Classification] | None] = asyncio.Queue()
                room = asyncio.Semaphore(in_work)
                tasks: set[asyncio.Task[Classification]] = set()

                async def feed() -> None:
                    try:
                        async for image in _iterate(images):
                            await room.acquire()
                            task = asyncio.create_task(self._classify_one(job, image, matrix))
                            tasks.add(task)
                            answers.put_nowait(task)
                    finally:
                        answers.put_nowait(None)

                feeder = asyncio.create_task(feed())
                try:
                    index = 0
                    while (task := await answers.get()) is not None:
                        try:
                            answer: Classification | AnyclassError = await task
                        except AnyclassError as exc:
                            answer = exc
                        tasks.discard(task)
                        room.release()
                        yield index, answer
                        index += 1
                    await feeder  # raises what the source of the images raised
                finally:
                    feeder.cancel()
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(feeder, *tasks, return_exceptions=True)
        finally:
            self._batch_requests -= 1

    async def close(self) -> None:
        """Accept nothing more, answer what was accepted (for `drain_timeout_s` at most), then stop."""
        self._closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._idle.wait()
        await self._label_vectors.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._helpers.shutdown(wait=False, cancel_futures=True)

    def _model(self, name: str | None) -> Model:
        if self._closing or not self._models.ready:
            state = "stopping" if self._closing else "starting"
            raise NotReady(f"The service is {state}; try again shortly.")
        return self._models.get(name)

    @contextmanager
    def _accepted(self) -> Iterator[None]:
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    @contextmanager
    def _counted(self, model: Model) -> Iterator[None]:
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
            self._metrics.images.labels(model.name, outcome).inc()

    @asynccontextmanager
    async def _deadline(self) -> AsyncIterator[float]:
        """Bound a request's time; gives the deadline on the clock of `time.monotonic`."""
        limit_s = self._settings.request_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                yield time.monotonic() + limit_s
        except TimeoutError as exc:
            raise DeadlineExceeded(f"No answer within {limit_s:g} s; try again later, or with fewer labels.") from exc

    async def _check(self, model: Model, query: LabelQuery, options: ScoringOptions, lane: Lane) -> _Job:
        settings = self._settings
        check_scoring(model.manifest.scoring, options.method, options.temperature)
        rank(np.zeros(1, np.float32), options.top_k, options.min_score)
        if isinstance(query.templates, str):
            templates = model.template_set(query.templates)
        else:
            templates = validate_templates(
                query.templates, max_templates=settings.max_templates, max_chars=settings.max_label_chars
            )
        # Counts are checked before anything is sent to a thread, so what goes there is bounded.
        labels = await self._aside(
            len(query.labels) if len(query.labels) <= settings.max_labels else 0,
            lambda: normalise_labels(query.labels, max_labels=settings.max_labels, max_chars=settings.max_label_chars),
        )
        return _Job(model, query, labels, templates, options, lane)

    async def _embed(
        self, job: _Job, image: bytes, timings: Timings, deadline: float, on_taken: Callable[[], None] | None = None
    ) -> Vectors:
        """Decode and encode one image → float32 `[dim]`."""
        started = time.monotonic()
        pixels = await self._decode(image, job.model)
        timings.decode_s = time.monotonic() - started
        self._metrics.spent("decode", timings.decode_s)
        done = await job.model.encode_image(pixels, lane=job.lane, deadline=deadline, on_taken=on_taken)
        timings.queue_s, timings.image_s = done.queue_s, done.run_s
        self._metrics.spent("queue", done.queue_s)
        self._metrics.spent("image", done.run_s)
        vector: Vectors = done.vectors[0]
        return vector

    async def _decode(self, image: bytes, model: Model) -> npt.NDArray[np.uint8]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, decode, image, model.manifest.image, self._limits)

    async def _labels(self, job: _Job, timings: Timings) -> LabelMatrix:
        started = time.monotonic()
        matrix = await self._label_vectors.matrix(job.model, job.labels, job.templates, lane=job.lane)
        timings.text_s = time.monotonic() - started
        self._metrics.spent("text", timings.text_s)
        return matrix

    async def _classify_one(self, job: _Job, image: bytes, matrix: LabelMatrix) -> Classification:
        with self._counted(job.model):
            async with job.model.background_images, self._deadline() as deadline:
                timings = Timings()
                vector = await self._embed(job, image, timings, deadline)
                return await self._score(job, vector, matrix, timings)

    async def _score(self, job: _Job, vector: Vectors, matrix: LabelMatrix, timings: Timings) -> Classification:
        started = time.monotonic()
        predictions = await self._aside(len(job.labels), lambda: _predict(job, vector, matrix.vectors))
        timings.score_s = time.monotonic() - started
        self._metrics.spent("score", timings.score_s)
        return Classification(
            model=job.model.name,
            revision=job.model.manifest.revision,
            predictions=predictions,
            labels=len(job.labels),
            labels_cached=matrix.cached,
        )

    async def _aside(self, labels: int, work: Callable[[], T]) -> T:
        if labels < _MANY_LABELS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._helpers, work)


def _predict(job: _Job, vector: Vectors, matrix: Vectors) -> tuple[Prediction, ...]:
    """Score float32 `[dim]` against `[labels, dim]`."""
    options = job.options
    values = scores(cosines(vector, matrix), job.model.manifest.scoring, options.method, options.temperature)
    order = rank(values, options.top_k, options.min_score)
    spelled = job.query.labels
    return tuple(
        Prediction(spelled[index], score) for index, score in zip(order.tolist(), values[order].tolist(), strict=True)
    )


async def _iterate(images: AsyncIterator[bytes] | Sequence[bytes]) -> AsyncIterator[bytes]:
    if isinstance(images, Sequence):
        for image in images:
            yield image
    else:
        async for image in images:
            yield image
