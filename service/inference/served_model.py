"""A served model: its bundle, its engine, and its share of a device's scheduler."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from service.concurrency import together
from service.errors import InvalidTemplates
from service.inference.admission import Admission
from service.inference.batch_execution import Rows, Work
from service.inference.batch_selection import split_sorted
from service.inference.batcher import Batcher
from service.inference.entries import Done
from service.lanes import Lane
from service.model.arrays import Ids, Pixels, Vectors
from service.model.engine.engine import Engine, OnnxEngine
from service.model.loading import Bundle
from service.model.manifest import Manifest
from service.model.tokenizer import Tokenizer
from service.monitoring.metrics import Metrics
from service.settings import Settings

_BACKGROUND_BATCHES: Final = 2
"""Background images being decoded or waiting, in batches: one to run and one to follow."""


class Model:
    """A bundle, the engine that runs it, and the batcher of the engine's device.

    Attributes:
        images: admission of interactive images.
        texts: admission of new texts, by lane.
        max_batch: images in a batch.
        max_batch_texts: texts in a batch.
        background_images: limits the images that all batch requests together have in work.
    """

    def __init__(
        self, bundle: Bundle, engine: Engine, batcher: Batcher, *, settings: Settings, metrics: Metrics
    ) -> None:
        self.bundle = bundle
        self.engine = engine
        self.tokenizer = Tokenizer.from_bundle(bundle)
        self.max_batch = batcher.max_batch
        self._batcher = batcher
        name = bundle.manifest.name
        self.max_batch_texts = settings.max_batch_texts
        self._image_work = Work(name, "image", _concatenate, engine.encode_images)
        length = self._padded_length if self.manifest.text.padding == "longest" else None
        self._text_work = Work(name, "text", self._pad, engine.encode_texts, length, self.max_batch_texts)
        self.images = Admission(
            name,
            "image",
            metrics,
            limit=settings.max_waiting,
            completion_s=lambda rows: batcher.completion_s(self._image_work, rows, Lane.INTERACTIVE),
        )
        self.texts = {lane: self._text_admission(lane, settings, metrics) for lane in Lane}
        self.background_images = asyncio.Semaphore(_BACKGROUND_BATCHES * batcher.max_batch)
        metrics.model_loaded(
            name,
            revision=self.manifest.revision,
            provider=engine.provider,
            precision=engine.precision,
            chosen_by=engine.chosen_by,
            threads=engine.cpu_threads,
            batch_limits={"image": self.max_batch, "text": self.max_batch_texts},
        )

    @property
    def name(self) -> str:
        """The manifest's name."""
        return self.manifest.name

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def numerics(self) -> str:
        """Provider and precision, which decide a text's vector beside the text graph."""
        return f"{self.engine.provider}/{self.engine.precision}"

    def template_set(self, name: str) -> tuple[str, ...]:
        """Return the templates of that name. Raises InvalidTemplates, which lists the known names."""
        try:
            return self.bundle.templates[name]
        except KeyError:
            known = ", ".join(sorted(self.bundle.templates))
            raise InvalidTemplates(
                f"Model {self.name} has no template set of that name; it has {known}. If it is meant as a template: it "
                "needs {} where the label goes, and in JSON it stands in a list."
            ) from None

    async def encode_image(
        self, pixels: Pixels, *, lane: Lane, deadline: float, on_dequeued: Callable[[], None] | None = None
    ) -> Done:
        """Encode uint8 `[height, width, 3]` → float32 `[1, dim]`. Arguments and errors as `Batcher.submit`."""
        return await self._batcher.submit(
            self._image_work,
            pixels[np.newaxis],
            lane=lane,
            deadline=deadline,
            on_dequeued=on_dequeued,
        )

    async def encode_texts(self, tokens: Sequence[Sequence[int]], *, lane: Lane) -> Vectors:
        """Encode token ids of texts, in any number → float32 `[texts, dim]`.

        They run in batches of similar length, because a batch costs as much as its longest text in every row.
        Raises: as `Batcher.submit`.
        """
        order = sorted(range(len(tokens)), key=lambda index: len(tokens[index]))
        lengths = [self._padded_length([tokens[index]]) for index in order]
        chunks = [order[part] for part in split_sorted(lengths, self._batcher.rules(self._text_work))]
        done: list[Done] = await together(
            [self._batcher.submit(self._text_work, [tokens[index] for index in chunk], lane=lane) for chunk in chunks]
        )
        vectors = np.empty((len(tokens), self.engine.dim), np.float32)
        for chunk, part in zip(chunks, done, strict=True):
            vectors[chunk] = part.vectors
        return vectors

    def warm(self) -> None:
        """Run both encoders once; blocking. Raises BundleError if one fails."""
        if isinstance(self.engine, OnnxEngine):
            self.engine.warm()

    def _text_admission(self, lane: Lane, settings: Settings, metrics: Metrics) -> Admission:
        return Admission(
            self.name,
            "text",
            metrics,
            limit=settings.max_waiting_texts,
            completion_s=lambda rows: self._batcher.completion_s(self._text_work, rows, lane),
            batch=self.max_batch_texts,
        )

    def _padded_length(self, rows: Rows) -> int:
        return max(self.manifest.text.min_length, *map(len, rows))

    def _pad(self, entries: Sequence[Any]) -> Ids:
        return self.tokenizer.pad([row for rows in entries for row in rows])


def _concatenate(entries: Sequence[Any]) -> Pixels:
    return entries[0] if len(entries) == 1 else np.concatenate(entries)
