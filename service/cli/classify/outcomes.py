"""Outcome of each image, in the images' order: classified in this process or by a service."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Self

from service.api.problems.table import kind_of
from service.classification.classifier import Classifier
from service.classification.pipeline import Pipeline
from service.classification.types import Classification, LabelQuery, Prediction, ScoringOptions
from service.cli.inputs import read_at_most
from service.cli.remote.client import RemoteError, Service, document
from service.concurrency import in_order
from service.errors import AnyclassError, DeviceLost, InvalidImage, PayloadTooLarge
from service.inference.registry import ModelRegistry
from service.model.answer_warnings import AnswerWarning
from service.monitoring.metrics import Metrics
from service.settings import Settings
from service.vector_cache.opening import open_caches

_MAX_SENT_BYTES: Final = 2**28
"""Larger images are not sent. The limit of the service is its own to report."""


@dataclass(frozen=True, slots=True)
class ImageOutcome:
    """Answer for one image, or the reason for its failure.

    Attributes:
        image: as it was named.
        answer: None if the image failed.
        error: the reason for people.
        problem: the failure as the HTTP interface writes it: ``type``, ``title``, ``status``, ``detail``.
    """

    image: str
    answer: Classification | None = None
    error: str = ""
    problem: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def failed(cls, image: str, error: AnyclassError) -> Self:
        """Return the outcome of an image that failed in this process, where it has no request id."""
        kind = kind_of(error)
        problem = {"type": kind.type, "title": kind.title, "status": kind.status, "detail": error.detail}
        return cls(image, error=error.detail, problem=problem)


async def classify_locally(
    images: Sequence[str],
    query: LabelQuery,
    options: ScoringOptions,
    settings: Settings,
    *,
    on_ready: Callable[[], None],
) -> AsyncGenerator[ImageOutcome]:
    """Classify with a model loaded into this process; at most two batches of images are in memory.

    Raises: `AnyclassError` for errors that concern all images.
    """

    async def sources() -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
        for image in images:
            yield partial(_read, image, settings.max_body_bytes)

    async with _classifier(settings) as classifier:
        on_ready()
        async with aclosing(classifier.classify_many(sources(), query, options)) as answers:
            async for index, answer in answers:
                if isinstance(answer, DeviceLost):
                    raise answer
                if isinstance(answer, AnyclassError):
                    yield ImageOutcome.failed(images[index], answer)
                else:
                    yield ImageOutcome(images[index], answer)


async def classify_remotely(
    images: Sequence[str],
    query: LabelQuery,
    options: ScoringOptions,
    service: Service,
    *,
    model: str | None,
    in_flight: int,
) -> AsyncGenerator[ImageOutcome]:
    """Have a service classify, `in_flight` images at a time. Raises `RemoteError` if it concerns all images."""
    form = dict(_form(query, options, model))

    async def outcome(index: int, image: str) -> ImageOutcome:
        try:
            content = await _read(image, _MAX_SENT_BYTES)
            # The file's name stays private to the client.
            files = {"image": ("image", content, "application/octet-stream")}
            answer = await service.send("POST", "/v1/classify", position=index, data=form, files=files)
            return ImageOutcome(image, _classification(document(answer)))
        except AnyclassError as exc:
            return ImageOutcome.failed(image, exc)
        except RemoteError as exc:
            if not exc.image_at_fault:
                raise
            return ImageOutcome(image, error=str(exc), problem=exc.problem)

    async with service, aclosing(in_order(images, outcome, in_flight)) as outcomes:
        async for each in outcomes:
            yield each


async def _read(image: str, limit: int) -> bytes:
    """Return the bytes of a file. Raises `InvalidImage`, and `PayloadTooLarge` beyond `limit`."""
    try:
        content = await asyncio.to_thread(read_at_most, image, limit)
    except OSError as exc:
        raise InvalidImage(f"cannot be read: {exc.strerror or exc}") from exc
    except ValueError as exc:  # a null character in the name
        raise InvalidImage(f"cannot be read: {exc}") from exc
    if content is None:
        raise PayloadTooLarge(f"The image has more than {limit} bytes, which is the limit.")
    return content


@asynccontextmanager
async def _classifier(settings: Settings) -> AsyncIterator[Classifier]:
    metrics = Metrics()
    async with AsyncExitStack() as undo:
        registry = await asyncio.to_thread(ModelRegistry.load, settings, metrics)
        undo.push_async_callback(registry.close)
        await asyncio.to_thread(registry.warm)
        cache = open_caches(settings, metrics).texts
        undo.push_async_callback(cache.close)
        classifier = Classifier(Pipeline(registry, cache, settings, metrics), settings, metrics)
        undo.push_async_callback(classifier.close)
        yield classifier


def _form(query: LabelQuery, options: ScoringOptions, model: str | None) -> Iterator[tuple[str, str]]:
    """Yield the form fields of the request that differ from their defaults."""
    fields: dict[str, Any] = {
        "scoring": options.method,
        "top_k": options.top_k,
        "min_score": options.min_score,
        "temperature": options.temperature,
        "model": model,
        "label_set": query.label_set,
    }
    if query.label_set is None:
        templates = query.templates
        fields["labels"] = list(query.labels)
        fields["templates"] = templates if isinstance(templates, str) else list(templates)
    for name, value in fields.items():
        if value is not None:
            yield name, json.dumps(value) if isinstance(value, list) else str(value)


def _classification(body: Any) -> Classification:  # noqa: ANN401 - any JSON
    try:
        return Classification(
            model=body["model"],
            revision=body["revision"],
            predictions=tuple(Prediction(each["label"], each["score"]) for each in body["predictions"]),
            labels=body["usage"]["labels"],
            labels_cached=body["usage"]["labels_cached"],
            warnings=tuple(
                AnswerWarning(each["code"], each["message"], tuple(each["labels"])) for each in body.get("warnings", ())
            ),
        )
    except (KeyError, TypeError) as exc:
        raise RemoteError(
            "The server's answer is not a classification; it does not look like an anyclass service."
        ) from exc
