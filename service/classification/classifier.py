"""The use case of classification: an image and labels in, ranked scores out."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass

from service.classification.batch_places import BatchPlaces
from service.classification.pipeline import Pipeline
from service.classification.types import Classification, ImageSource, LabelQuery, Ranking, ScoringOptions, Timings
from service.concurrency import both, in_order, run_off_loop
from service.errors import AnyclassError, Overloaded, StateUnavailable
from service.inference.served_model import Model
from service.label_sets.ready_sets import ReadySet
from service.label_sets.use_cases import LabelSets
from service.labels.checked_labels import CheckedLabels, KnownLabels
from service.labels.vectors import LabelMatrix
from service.lanes import Lane
from service.model.answer_warnings import AnswerWarning, warn_of_lone_label
from service.model.arrays import Vectors
from service.model.scoring import check_ranking, check_scoring, cosines, rank, scores
from service.monitoring.metrics import Metrics
from service.monitoring.usage import add_work
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class _Prompts:
    """Labels, and the templates that each is filled into."""

    labels: CheckedLabels
    templates: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Job:
    """A request that passed every check that needs no computation.

    Attributes:
        labels: as the client, or the label set's writer, spelled them.
        source: of the labels' vectors.
    """

    model: Model
    labels: Sequence[str]
    source: _Prompts | ReadySet
    options: ScoringOptions
    lane: Lane


class Classifier:
    """Classifies images. Belongs to one event loop.

    Attributes:
        batch_places: limits the calls of `classify_many`.
    """

    def __init__(
        self, pipeline: Pipeline, settings: Settings, metrics: Metrics, label_sets: LabelSets | None = None
    ) -> None:
        """Take over the pipeline and the label sets: `close` closes both."""
        self._pipeline = pipeline
        self._settings = settings
        self._metrics = metrics
        self._label_sets = label_sets
        self._known_labels = KnownLabels(max_labels=settings.max_labels, max_chars=settings.max_label_chars)
        self._scorer = ThreadPoolExecutor(1, thread_name_prefix="anyclass-score")
        self.batch_places = BatchPlaces(settings.max_batch_requests)

    @property
    def label_sets(self) -> LabelSets:
        """Named label sets. Raises StateUnavailable if none are kept."""
        if self._label_sets is None:
            raise StateUnavailable("No label sets are kept here.")
        return self._label_sets

    def check_admission(self, model: str | None = None) -> None:
        """Raise Overloaded, NotReady or UnknownModel as `classify` would, before a body is read."""
        deadline = time.monotonic() + self._settings.request_timeout_s
        self._pipeline.model(model).images.check(deadline=deadline)

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
        pipeline = self._pipeline
        chosen = pipeline.model(model)
        with pipeline.accepted(), pipeline.counted(chosen):
            async with pipeline.deadline() as deadline:
                job = await self._check(chosen, query, options, Lane.INTERACTIVE)
                seen = await pipeline.seen(image, chosen)
                if seen.vector is not None:
                    matrix = await self._label_matrix(job, timings, deadline)
                    return await self._score(job, seen.vector, matrix, timings)
                reservation = chosen.images.reserve(deadline=deadline)
                try:
                    vector, matrix = await both(
                        pipeline.embed(
                            image,
                            chosen,
                            timings,
                            lane=job.lane,
                            deadline=deadline,
                            seen=seen,
                            on_dequeued=reservation.release,
                        ),
                        self._label_matrix(job, timings, deadline),
                    )
                finally:
                    reservation.release()
                return await self._score(job, vector, matrix, timings)

    async def classify_many(
        self,
        images: AsyncIterator[ImageSource] | Sequence[ImageSource],
        query: LabelQuery,
        options: ScoringOptions,
        *,
        model: str | None = None,
    ) -> AsyncGenerator[tuple[int, Classification | AnyclassError]]:
        """Classify images in the background lane: yield `(index, answer or error)` in order, as soon as known.

        At most two batches of images are in work at any time. An error of the request as a whole is raised before the
        first answer. Close the iterator (`contextlib.aclosing`) to stop early: work under way is dropped.

        Raises: as `classify`, except for errors of a single image.
        """
        chosen = self._pipeline.model(model)
        if not self.batch_places.free:
            raise Overloaded("Too many batch requests are running; try again later.", chosen.images.retry_after_s())
        with self.batch_places.opened() as place, self._pipeline.accepted():
            with place.at_work():
                job, matrix = await self._prepare(chosen, query, options)

            async def answer(index: int, image: ImageSource) -> tuple[int, Classification | AnyclassError]:
                with place.at_work():
                    try:
                        return index, await self._classify_one(job, image, matrix)
                    except AnyclassError as exc:
                        return index, exc

            async with aclosing(in_order(images, answer, 2 * chosen.max_batch)) as answers:
                async for each in answers:
                    yield each

    async def classify_in_background(
        self, image: ImageSource, query: LabelQuery, options: ScoringOptions, *, model: str | None = None
    ) -> Classification:
        """Classify one image in the background lane, where it waits for its turn. Raises: as `classify`."""
        chosen = self._pipeline.model(model)
        with self._pipeline.accepted():
            job, matrix = await self._prepare(chosen, query, options)
            return await self._classify_one(job, image, matrix)

    async def close(self) -> None:
        """Refuse new requests, answer the accepted ones (for `drain_timeout_s` at most), then stop."""
        await self._pipeline.drain()
        if self._label_sets is not None:
            await self._label_sets.close()
        await self._pipeline.close()
        self._scorer.shutdown(wait=False, cancel_futures=True)

    async def _prepare(self, model: Model, query: LabelQuery, options: ScoringOptions) -> tuple[_Job, LabelMatrix]:
        """Check a background request and get its class vectors, which all of its images share."""
        async with self._pipeline.deadline() as deadline:
            job = await self._check(model, query, options, Lane.BACKGROUND)
            return job, await self._label_matrix(job, Timings(), deadline)

    async def _check(self, model: Model, query: LabelQuery, options: ScoringOptions, lane: Lane) -> _Job:
        check_scoring(model.manifest.scoring, options.method, options.temperature)
        check_ranking(options.top_k, options.min_score)
        if query.label_set is not None:
            ready = await self.label_sets.resolve(query.label_set, model, lane=lane)
            return _Job(model, ready.labels, ready, options, lane)
        templates = self._pipeline.templates(model, query.templates)
        prompts = _Prompts(await self._known_labels.check(query.labels), templates)
        return _Job(model, query.labels, prompts, options, lane)

    async def _label_matrix(self, job: _Job, timings: Timings, deadline: float) -> LabelMatrix:
        source = job.source
        if isinstance(source, ReadySet):
            add_work(job.model.name, labels=len(job.labels))
            return LabelMatrix(source.vectors, len(job.labels), source.warnings)
        labels = source.labels
        matrix = await self._pipeline.label_matrix(
            job.model, labels.labels, source.templates, timings, lane=job.lane, deadline=deadline, digest=labels.digest
        )
        add_work(job.model.name, labels=len(job.labels))
        return matrix

    async def _classify_one(self, job: _Job, source: ImageSource, matrix: LabelMatrix) -> Classification:
        pipeline = self._pipeline
        with pipeline.counted(job.model):
            async with pipeline.loaded(source) as image, job.model.background_images, pipeline.deadline() as deadline:
                timings = Timings()
                vector = await pipeline.embed(image, job.model, timings, lane=job.lane, deadline=deadline)
                return await self._score(job, vector, matrix, timings)

    async def _score(self, job: _Job, vector: Vectors, matrix: LabelMatrix, timings: Timings) -> Classification:
        started = time.monotonic()
        predictions = await run_off_loop(len(job.labels), lambda: _predict(job, vector, matrix.vectors), self._scorer)
        timings.score_s = time.monotonic() - started
        self._metrics.spent(job.model.name, "score", timings.score_s)
        return Classification(
            model=job.model.name,
            revision=job.model.manifest.revision,
            predictions=predictions,
            labels=len(job.labels),
            labels_cached=matrix.cached,
            warnings=_warnings(job, matrix),
        )


def _warnings(job: _Job, matrix: LabelMatrix) -> tuple[AnswerWarning, ...]:
    if len(job.labels) != 1:
        return matrix.warnings
    return warn_of_lone_label(job.labels, job.options.method or job.model.manifest.scoring.kind) + matrix.warnings


def _predict(job: _Job, vector: Vectors, matrix: Vectors) -> Ranking:
    """Score float32 `[dim]` against `[labels, dim]`."""
    options = job.options
    values = scores(cosines(vector, matrix), job.model.manifest.scoring, options.method, options.temperature)
    return Ranking(job.labels, rank(values, options.top_k, options.min_score), values)
