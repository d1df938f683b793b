"""The use case: an image and labels in, ranked scores out."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from service.classification.types import (
    Classification,
    ImageSource,
    LabelQuery,
    Ranking,
    ScoringOptions,
    Timings,
    load_image,
)
from service.concurrency import both
from service.errors import AnyclassError, DeadlineExceeded, NotReady, Overloaded, StateUnavailable
from service.images.decode_pool import DecodePool
from service.images.decoding import ImageLimits
from service.inference.batch_execution import Vectors
from service.inference.entries import Done
from service.inference.registry import ModelRegistry
from service.inference.served_model import Model
from service.label_sets.ready_sets import ReadySet
from service.label_sets.use_cases import LabelSets
from service.labels.cache import TextCache
from service.labels.checked_labels import CheckedLabels, KnownLabels
from service.labels.vectors import LabelMatrix, LabelVectors
from service.lanes import Lane
from service.model.engine.cpus import available_cpus
from service.model.prompts import validate_templates
from service.model.scoring import check_scoring, cosines, rank, scores
from service.monitoring.metrics import Metrics
from service.settings import Settings
from service.state.protocol import StateStore

T = TypeVar("T")

_CPUS: Final = available_cpus()  # asked here and not on the event loop: it reads files
_MOST_FETCHED: Final = 64
"""Images of URLs that batches have fetched, or are fetching, and not yet answered; each may have the largest size."""
_MANY_LABELS: Final = 1_024
"""Labels from which on checking and ranking them is left to a thread."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A request that passed every check that costs nothing."""

    model: Model
    query: LabelQuery
    labels: CheckedLabels
    templates: tuple[str, ...]
    options: ScoringOptions
    lane: Lane
    ready: ReadySet | None = None


class Classifier:
    """Classifies images. Belongs to one event loop; closes neither the models nor the cache."""

    def __init__(
        self,
        models: ModelRegistry,
        text_cache: TextCache,
        settings: Settings,
        metrics: Metrics,
        state: StateStore | None = None,
    ) -> None:
        """Without a `state` there are no label sets. It is closed by whoever opened it."""
        self._models = models
        self._settings = settings
        self._metrics = metrics
        self._label_vectors = LabelVectors(
            text_cache, metrics, prefix=settings.cache_prefix, matrices_bytes=settings.cache_matrices_mib * 2**20
        )
        self._label_sets = None if state is None else LabelSets(state, models, self._label_vectors, settings, metrics)
        self._known_labels = KnownLabels(max_labels=settings.max_labels, max_chars=settings.max_label_chars)
        # Admission counts images by model; together they cannot come to more than this.
        most_of_a_model = settings.max_waiting + settings.max_batch_images + 2 * settings.max_batch
        self._decoders = DecodePool(
            settings.decode_threads or _CPUS,
            limits=ImageLimits(max_bytes=settings.max_body_bytes, max_pixels=settings.max_pixels),
            preprocessing=settings.preprocessing,
            most_waiting=most_of_a_model * len(models.names),
            background_every=settings.background_every,
        )
        self._helpers = ThreadPoolExecutor(1, thread_name_prefix="anyclass-score")
        self._fetched = asyncio.Semaphore(_MOST_FETCHED)
        self._closing = False
        self._active = 0
        self._batch_requests = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def label_sets(self) -> LabelSets:
        """Named label sets. Raises StateUnavailable where none are kept."""
        if self._label_sets is None:
            raise StateUnavailable("No label sets are kept here.")
        return self._label_sets

    def check_admission(self, model: str | None = None) -> None:
        """Raise what `classify` would raise of Overloaded, NotReady and UnknownModel: before a body is read."""
        self._model(model).images.check(deadline=time.monotonic() + self._settings.request_timeout_s)

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
            UnknownLabelSet, LabelSetComputing, LabelSetFailed, StateUnavailable, StateCorrupt: of a label set.
        """
        timings = timings or Timings()
        chosen = self._model(model)
        with self._accepted(), self.counted(chosen):
            async with self._deadline() as deadline:
                job = await self._check(chosen, query, options, Lane.INTERACTIVE)
                place = chosen.images.enter(deadline=deadline)
                try:
                    vector, matrix = await both(
                        self._embed(job, image, timings, deadline, place.leave), self._labels(job, timings, deadline)
                    )
                finally:
                    place.leave()
                return await self._score(job, vector, matrix, timings)

    async def classify_many(
        self,
        images: AsyncIterator[ImageSource] | Sequence[ImageSource],
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
                async with self._deadline() as deadline:
                    job = await self._check(chosen, query, options, Lane.BACKGROUND)
                    matrix = await self._labels(job, Timings(), deadline)
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

    async def classify_in_background(
        self, image: ImageSource, query: LabelQuery, options: ScoringOptions, *, model: str | None = None
    ) -> Classification:
        """Classify one image in the background lane, where it waits for its turn. Raises: as `classify`."""
        chosen = self._model(model)
        with self._accepted():
            async with self._deadline() as deadline:
                job = await self._check(chosen, query, options, Lane.BACKGROUND)
                matrix = await self._labels(job, Timings(), deadline)
            return await self._classify_one(job, image, matrix)

    @asynccontextmanager
    async def accept(self, model: str | None) -> AsyncIterator[tuple[Model, float]]:
        """Take in a request that asks for vectors: gives its model, and its deadline on the clock of `time.monotonic`.

        Raises: UnknownModel, NotReady, and DeadlineExceeded where the block takes longer than `request_timeout_s`.
        """
        chosen = self._model(model)
        with self._accepted():
            async with self._deadline() as deadline:
                yield chosen, deadline

    @asynccontextmanager
    async def loaded(self, source: ImageSource) -> AsyncIterator[bytes]:
        """An encoded image for the background, fetched where it is a URL; so many are in memory at once, no more.

        Raises: as `load_image`.
        """
        if isinstance(source, bytes | AnyclassError):
            yield await load_image(source)
            return
        async with self._fetched:
            yield await load_image(source)

    async def decode(self, image: bytes, model: Model, *, lane: Lane) -> npt.NDArray[np.uint8]:
        """Decode an image for `model` in the pool → uint8 `[height, width, 3]`. Raises as `images.decode`."""
        started = time.monotonic()
        with self._metrics.decode_waiting.track_inprogress():
            pixels = await self._decoders.decode(image, model.manifest.image, lane=lane)
        self._metrics.spent(model.name, "decode", time.monotonic() - started)
        return pixels

    async def encode(
        self,
        pixels: npt.NDArray[np.uint8],
        model: Model,
        *,
        lane: Lane,
        deadline: float,
        on_taken: Callable[[], None] | None = None,
    ) -> Done:
        """Encode uint8 `[height, width, 3]` → float32 `[1, dim]`, with its times; as `Model.encode_image`."""
        done = await model.encode_image(pixels, lane=lane, deadline=deadline, on_taken=on_taken)
        self._metrics.spent(model.name, "queue", done.queue_s)
        self._metrics.spent(model.name, "image", done.run_s)
        return done

    async def label_matrix(
        self, model: Model, labels: tuple[str, ...], templates: tuple[str, ...], *, lane: Lane = Lane.INTERACTIVE
    ) -> Vectors:
        """Class vectors of normalised labels → float32 `[labels, dim]`, not to be changed; as `LabelVectors.matrix`."""
        started = time.monotonic()
        matrix = await self._label_vectors.matrix(model, labels, templates, lane=lane)
        self._metrics.spent(model.name, "text", time.monotonic() - started)
        return matrix.vectors

    async def close(self) -> None:
        """Accept nothing more, answer what was accepted (for `drain_timeout_s` at most), then stop."""
        self._closing = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._idle.wait()
        if self._label_sets is not None:
            await self._label_sets.close()
        await self._label_vectors.close()
        self._decoders.close()
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
    def counted(self, model: Model, images: int = 1) -> Iterator[None]:
        """Count what becomes of `images` images of one request."""
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
        if query.label_set is not None:
            ready = await self.label_sets.resolve(query.label_set, model, lane=lane)
            checked = CheckedLabels((), b"")  # nothing is looked up by them, the matrix is at hand
            return _Job(model, replace(query, labels=ready.labels), checked, (), options, lane, ready)
        if isinstance(query.templates, str):
            templates = model.template_set(query.templates)
        else:
            templates = validate_templates(
                query.templates, max_templates=settings.max_templates, max_chars=settings.max_label_chars
            )
        return _Job(model, query, await self._known_labels.check(query.labels), templates, options, lane)

    async def _embed(
        self, job: _Job, image: bytes, timings: Timings, deadline: float, on_taken: Callable[[], None] | None = None
    ) -> Vectors:
        """Decode and encode one image → float32 `[dim]`."""
        started = time.monotonic()
        pixels = await self.decode(image, job.model, lane=job.lane)
        timings.decode_s = time.monotonic() - started
        done = await self.encode(pixels, job.model, lane=job.lane, deadline=deadline, on_taken=on_taken)
        timings.queue_s, timings.image_s = done.queue_s, done.run_s
        vector: Vectors = done.vectors[0]
        return vector

    async def _labels(self, job: _Job, timings: Timings, deadline: float) -> LabelMatrix:
        if job.ready is not None:
            return LabelMatrix(job.ready.vectors, cached=len(job.query.labels))
        started = time.monotonic()
        matrix = await self._label_vectors.matrix(
            job.model, job.labels.labels, job.templates, lane=job.lane, deadline=deadline, digest=job.labels.digest
        )
        timings.text_s = time.monotonic() - started
        self._metrics.spent(job.model.name, "text", timings.text_s)
        return matrix

    async def _classify_one(self, job: _Job, source: ImageSource, matrix: LabelMatrix) -> Classification:
        with self.counted(job.model):
            async with self.loaded(source) as image, job.model.background_images, self._deadline() as deadline:
                timings = Timings()
                vector = await self._embed(job, image, timings, deadline)
                return await self._score(job, vector, matrix, timings)

    async def _score(self, job: _Job, vector: Vectors, matrix: LabelMatrix, timings: Timings) -> Classification:
        started = time.monotonic()
        predictions = await self._aside(len(job.query.labels), lambda: _predict(job, vector, matrix.vectors))
        timings.score_s = time.monotonic() - started
        self._metrics.spent(job.model.name, "score", timings.score_s)
        return Classification(
            model=job.model.name,
            revision=job.model.manifest.revision,
            predictions=predictions,
            labels=len(job.query.labels),
            labels_cached=matrix.cached,
        )

    async def _aside(self, labels: int, work: Callable[[], T]) -> T:
        if labels < _MANY_LABELS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._helpers, work)


def _predict(job: _Job, vector: Vectors, matrix: Vectors) -> Ranking:
    """Score float32 `[dim]` against `[labels, dim]`."""
    options = job.options
    values = scores(cosines(vector, matrix), job.model.manifest.scoring, options.method, options.temperature)
    return Ranking(job.query.labels, rank(values, options.top_k, options.min_score), values)


async def _iterate(images: AsyncIterator[ImageSource] | Sequence[ImageSource]) -> AsyncIterator[ImageSource]:
    if isinstance(images, Sequence):
        for image in images:
            yield image
    else:
        async for image in images:
            yield image
