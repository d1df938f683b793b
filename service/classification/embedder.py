"""The use case of embedding: images and texts in, their vectors out, and the scores of each image against each text.

It runs on the same pipeline as classification and shares its cache of text vectors.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.classification.pipeline import Pipeline
from service.classification.types import ImageSource, Timings, load_image
from service.concurrency import both, together
from service.errors import (
    InvalidImage,
    InvalidLabels,
    InvalidRequest,
    PayloadTooLarge,
    PromptTooLong,
    UnsupportedImageFormat,
)
from service.inference.served_model import Model
from service.lanes import Lane
from service.model.answer_warnings import AnswerWarning
from service.model.arrays import Pixels, Vectors
from service.model.choices import ScoringMethod
from service.model.prompts import PLACEHOLDER, normalise_labels, prompts_for
from service.model.scoring import check_scoring, cosines, scores
from service.monitoring.usage import add_work
from service.settings import Settings

AS_WRITTEN = (PLACEHOLDER,)
"""Templates that leave a text unchanged."""


@dataclass(frozen=True, slots=True)
class EmbedQuery:
    """The inputs of an embedding.

    Attributes:
        images: image sources, or uint8 `[height, width, 3]` of the model's own size, or these as one array.
        texts: any texts; duplicates are allowed.
        templates: for each text, as for labels: a set's name or the templates.
        method, temperature: how `scores_of` will score the vectors; checked before any work is done.
    """

    images: Sequence[ImageSource | Pixels] | Pixels = ()
    texts: Sequence[str] = ()
    templates: str | tuple[str, ...] = AS_WRITTEN
    method: ScoringMethod | None = None
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of unit length, float32 `[images, dim]` and `[texts, dim]`; `tokens` is the number in all texts.

    The positions in `warnings` are those of distinct texts.
    """

    model: Model
    images: Vectors
    texts: Vectors
    tokens: int
    warnings: tuple[AnswerWarning, ...] = ()


class Embedder:
    """Embeds images and texts. Closes nothing."""

    def __init__(self, pipeline: Pipeline, settings: Settings) -> None:
        self._pipeline = pipeline
        self._settings = settings
        # One thread: several would keep the interpreter's lock among them, and the event loop waiting.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="anyclass-embed")

    async def embed(self, query: EmbedQuery, *, model: str | None = None, background: bool = False) -> Embedded:
        """Embed images and texts at the same time.

        More images than one batch of the device run in the background lane, so that single requests stay quick; with
        `background` all work does.

        Raises:
            InvalidRequest: a text, an image, the templates or the scoring is invalid, or an image could not be fetched.
            UnsupportedImageFormat: not an image of an accepted format.
            PayloadTooLarge: an image has too many bytes, or the query too many images or texts.
            UnknownModel: no such model.
            Overloaded: too much waits.
            NotReady: starting or stopping.
            DeadlineExceeded: it took longer than `request_timeout_s`.
            InferenceFailed: the model failed.
        """
        self._check_counts(query)
        chosen = self._pipeline.model(model)
        with self._pipeline.accepted():
            async with self._pipeline.deadline() as deadline:
                check_scoring(chosen.manifest.scoring, query.method, query.temperature)
                templates = self._pipeline.templates(chosen, query.templates)
                images, (texts, tokens, warnings) = await both(
                    self._images(chosen, query.images, deadline, background),
                    self._texts(chosen, query.texts, templates, background),
                )
                return Embedded(chosen, images, texts, tokens, warnings)

    def _check_counts(self, query: EmbedQuery) -> None:
        if len(query.images) > (limit := self._settings.max_batch_images):
            raise PayloadTooLarge(f"The request has {len(query.images)} images; {limit} may be sent at once here.")
        if len(query.texts) > (limit := self._settings.max_embed_texts):
            raise PayloadTooLarge(f"The request has {len(query.texts)} texts; {limit} may be sent at once here.")

    async def _images(
        self,
        model: Model,
        images: Sequence[ImageSource | Pixels] | Pixels,
        deadline: float,
        background: bool,  # noqa: FBT001 - of `embed`
    ) -> Vectors:
        if len(images) == 0:  # an array has no truth
            return np.empty((0, model.engine.dim), np.float32)
        reservation = model.images.reserve(len(images))
        background = background or len(images) > model.max_batch
        lane = Lane.BACKGROUND if background else Lane.INTERACTIVE
        pipeline = self._pipeline

        options: dict[str, Any] = {"lane": lane, "deadline": deadline, "on_dequeued": lambda: reservation.release(1)}

        async def vector(image: bytes | Pixels) -> Vectors:
            if isinstance(image, np.ndarray):
                return await pipeline.encode(image, model, Timings(), **options)
            return await pipeline.embed(image, model, Timings(), **options)

        async def one(image: ImageSource | Pixels) -> Vectors:
            return await vector(image if isinstance(image, np.ndarray) else await load_image(image))

        async def in_turn(image: ImageSource | Pixels) -> Vectors:
            # Limits the images decoded ahead, so that a large request does not fill the decode pool's queue.
            if isinstance(image, np.ndarray):
                async with model.background_images:
                    return await vector(image)
            async with pipeline.loaded(image) as data, model.background_images:
                return await vector(data)

        async def numbered(index: int, image: ImageSource | Pixels) -> Vectors:
            try:
                return await (in_turn if background else one)(image)
            except (InvalidImage, UnsupportedImageFormat) as exc:
                raise type(exc)(f"Image {index}: {exc.detail}") from exc

        with pipeline.counted(model, len(images)):
            try:
                return np.stack(await together([numbered(index, image) for index, image in enumerate(images)]))
            finally:
                reservation.release()

    async def _texts(
        self,
        model: Model,
        texts: Sequence[str],
        templates: tuple[str, ...],
        background: bool,  # noqa: FBT001 - of `embed`
    ) -> tuple[Vectors, int, tuple[AnswerWarning, ...]]:
        if not texts:
            return np.empty((0, model.engine.dim), np.float32), 0, ()
        rows, distinct, tokens = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._prepare, model, texts, templates
        )
        lane = Lane.BACKGROUND if background else Lane.INTERACTIVE
        matrix = await self._pipeline.label_matrix(model, distinct, templates, Timings(), lane=lane)
        add_work(model.name, labels=len(texts))
        return matrix.vectors[rows], tokens, matrix.warnings

    def _prepare(
        self, model: Model, texts: Sequence[str], templates: tuple[str, ...]
    ) -> tuple[list[int], tuple[str, ...], int]:
        """Return each text's row among the distinct normalised texts, these, and the tokens. Runs in a thread."""
        normalised = [self._normalise(index, text) for index, text in enumerate(texts)]
        row_of = {text: row for row, text in enumerate(dict.fromkeys(normalised))}
        try:
            tokens = model.tokenizer.tokenize(prompts_for(row_of, templates))
        except PromptTooLong as exc:
            at = None if exc.index is None else normalised.index(tuple(row_of)[exc.index // len(templates)])
            which = "A text" if at is None else f"Text {at}"
            limit = model.manifest.text.max_length
            raise PromptTooLong(
                f"{which} has more tokens than this model reads, {limit}; shorten it.", index=at
            ) from exc
        counts = [
            sum(map(len, tokens[start : start + len(templates)])) for start in range(0, len(tokens), len(templates))
        ]
        rows = [row_of[text] for text in normalised]
        return rows, tuple(row_of), sum(counts[row] for row in rows)

    def _normalise(self, index: int, text: str) -> str:
        try:
            (normalised,) = normalise_labels((text,), max_labels=1, max_chars=self._settings.max_label_chars)
        except InvalidLabels as exc:
            # The rule is that of labels; the message must name the text and its position.
            raise InvalidRequest(exc.detail.replace("Label 0", f"Text {index}", 1)) from exc
        return normalised


def scores_of(embedded: Embedded, method: ScoringMethod | None = None, temperature: float = 1.0) -> Vectors:
    """Score each image against all texts: float32 `[images, texts]`. Raises InvalidScoring, as `check_scoring`."""
    scoring = embedded.model.manifest.scoring
    check_scoring(scoring, method, temperature)
    return scores(cosines(embedded.images, embedded.texts), scoring, method, temperature)
