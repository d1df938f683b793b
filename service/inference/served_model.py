"""The models being served: each owns its two encoders; one scheduler for each device serves them all."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt
import platformdirs

from service.concurrency import together
from service.errors import ConfigurationError, InvalidTemplates, UnknownModel
from service.inference.admission import Admission
from service.inference.batch_selection import split_sorted
from service.inference.batcher import Batcher, Done, Lane, Rows, Vectors, Work
from service.model.engine.engine import Engine, OnnxEngine
from service.model.engine.providers import DeviceLimits, resolve
from service.model.manifest import DEMO_BUNDLE, Bundle, Manifest, Parity, load_bundle
from service.model.tokenizer import Tokenizer
from service.monitoring.metrics import Metrics
from service.settings import Settings

_BACKGROUND_BATCHES: Final = 2
"""Background images being decoded or waiting, in batches: one to run and one to follow it."""

_SHOWN_CHARS: Final = 100
"""Of a model's name that is not known."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What really runs under a name."""

    name: str
    aliases: tuple[str, ...]
    default: bool
    architecture: str
    revision: str
    provider: str
    provider_reason: str
    precision: str
    parity: Parity | None
    dim: int
    image_height: int
    image_width: int
    context_length: int
    scoring: Literal["softmax", "sigmoid"]
    templates: dict[str, tuple[str, ...]]


class Model:
    """A bundle, the engine that runs it, and its place on a device.

    Attributes:
        images: admission of interactive images.
        texts: admission of new texts, by lane.
        max_batch: images in a batch.
        max_batch_texts: texts in a batch.
        background_images: bounds what all batch requests together have in work.
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
        """Whatever decides a text's vector beside the text graph itself: provider and precision."""
        return f"{self.engine.provider}/{self.engine.precision}"

    def template_set(self, name: str) -> tuple[str, ...]:
        """Templates of that name. Raises InvalidTemplates, naming those there are."""
        try:
            return self.bundle.templates[name]
        except KeyError:
            known = ", ".join(sorted(self.bundle.templates))
            raise InvalidTemplates(f"Model {self.name} has no template set of that name; it has {known}.") from None

    async def encode_image(
        self, pixels: npt.NDArray[np.uint8], *, lane: Lane, deadline: float, on_taken: Callable[[], None] | None = None
    ) -> Done:
        """Encode uint8 `[height, width, 3]` → float32 `[1, dim]`; `on_taken` is called once it waits no longer.

        Raises: as `Batcher.submit`.
        """
        return await self._batcher.submit(
            self._image_work,
            pixels[np.newaxis],
            lane=lane,
            deadline=deadline,
            on_taken=on_taken,
        )

    async def encode_texts(self, tokens: Sequence[Sequence[int]], *, lane: Lane) -> Vectors:
        """Encode token ids of texts, in any number → float32 `[texts, dim]`.

        They go to the device in batches of like length, for a batch costs what its longest text costs.
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
        """Run both encoders once; blocking. Raises BundleError where they do not work."""
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

    def _pad(self, entries: Sequence[Any]) -> npt.NDArray[np.int64]:
        return self.tokenizer.pad([row for rows in entries for row in rows])


class ModelRegistry:
    """All models by name and alias; the first is the default."""

    def __init__(self, models: Sequence[Model], batchers: Iterable[Batcher]) -> None:
        """Raises ConfigurationError where two models claim one name."""
        if not models:
            raise ConfigurationError("There is no model to serve.")
        self.ready = False
        self._models = tuple(models)
        self._batchers = tuple(batchers)
        self._by_name: dict[str, Model] = {}
        for model in models:
            for name in dict.fromkeys((model.name, *model.manifest.aliases)):
                if name in self._by_name:
                    raise ConfigurationError(f"Two models claim the name {name}.")
                self._by_name[name] = model

    @classmethod
    def load(cls, settings: Settings, metrics: Metrics) -> Self:
        """Read, check and open what the settings name; blocking.

        Raises:
            BundleError: the bundle must not be served.
            ProviderUnavailable: the provider asked for is not there.
            ConfigurationError: bundle and provider do not go together.
        """
        provider = resolve(settings.provider, compute=settings.compute)
        limits = device_limits(settings)
        # All of them are checked before the first is opened, which takes longer.
        bundles = [load_bundle(path) for path in (settings.model or DEMO_BUNDLE, *settings.more_models)]
        parts = [
            (bundle, OnnxEngine.load(bundle, provider, threads=settings.threads, limits=limits)) for bundle in bundles
        ]
        return cls.of(parts, settings, metrics)

    @classmethod
    def of(cls, parts: Sequence[tuple[Bundle, Engine]], settings: Settings, metrics: Metrics) -> Self:
        """Put bundles and the engines that run them together, with one scheduler for each device."""
        batchers: dict[str, Batcher] = {}
        models = []
        for bundle, engine in parts:
            if engine.provider not in batchers:
                batchers[engine.provider] = Batcher(
                    engine.provider,
                    metrics,
                    max_batch=settings.max_batch,
                    background_every=settings.background_every,
                )
            models.append(Model(bundle, engine, batchers[engine.provider], settings=settings, metrics=metrics))
        return cls(models, batchers.values())

    @property
    def names(self) -> tuple[str, ...]:
        """Names without aliases, the default first."""
        return tuple(model.name for model in self._models)

    @property
    def default(self) -> str:
        """Name of the model that answers where none is named."""
        return self._models[0].name

    @property
    def healthy(self) -> bool:
        """False once a device's scheduler has died: the process should end."""
        return all(batcher.healthy for batcher in self._batchers)

    def get(self, name: str | None = None) -> Model:
        """Find a model by name or alias. Raises UnknownModel, which quotes the name's beginning, escaped."""
        if name is None:
            return self._models[0]
        model = self._by_name.get(name)
        if model is None:
            raise UnknownModel(f"There is no model {name[:_SHOWN_CHARS]!r} here; served are {', '.join(self.names)}.")
        return model

    def describe(self) -> list[ModelInfo]:
        """Say what really runs."""
        return [self._describe(model) for model in self._models]

    def warm(self) -> None:
        """Run every encoder once, then be `ready`; blocking. Raises BundleError where one does not work."""
        for model in self._models:
            model.warm()
        self.ready = True

    async def close(self, timeout_s: float = 5.0) -> None:
        """Run what waits, for `timeout_s` at most, then free the models."""
        self.ready = False
        try:
            async with asyncio.timeout(timeout_s):
                await together([batcher.close() for batcher in self._batchers])
        except TimeoutError:
            for batcher in self._batchers:
                batcher.abandon()
        for model in self._models:
            model.engine.close()

    def _describe(self, model: Model) -> ModelInfo:
        manifest = model.manifest
        return ModelInfo(
            name=manifest.name,
            aliases=manifest.aliases,
            default=model is self._models[0],
            architecture=manifest.architecture,
            revision=manifest.revision,
            provider=model.engine.provider,
            provider_reason=model.engine.provider_reason,
            precision=model.engine.precision,
            parity=manifest.parity,
            dim=manifest.dim,
            image_height=manifest.image.height,
            image_width=manifest.image.width,
            context_length=manifest.text.max_length,
            scoring=manifest.scoring.kind,
            templates=dict(model.bundle.templates),
        )


def _concatenate(entries: Sequence[Any]) -> npt.NDArray[np.uint8]:
    return entries[0] if len(entries) == 1 else np.concatenate(entries)


def device_limits(settings: Settings) -> DeviceLimits:
    """What the settings say of devices, in the units of `service.model.engine.providers`."""
    cache = settings.engine_cache or Path(platformdirs.user_cache_dir("anyclass", appauthor=False)) / "engines"
    return DeviceLimits(
        gpu_memory_bytes=None if settings.gpu_memory_mib is None else settings.gpu_memory_mib * 2**20,
        max_batch=settings.max_batch,
        max_batch_texts=settings.max_batch_texts,
        engine_cache=cache,
    )
