"""The served models, by name and alias."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Self

import platformdirs

from service.concurrency import together
from service.errors import ConfigurationError, UnknownModel
from service.inference.batcher import Batcher
from service.inference.served_model import Model
from service.model.choices import ChosenBy, ScoringKind
from service.model.engine.choice_store import ChoiceStore
from service.model.engine.engine import Engine, OnnxEngine
from service.model.engine.provider_table import TABLE, DeviceLimits
from service.model.engine.providers import resolve
from service.model.engine.sessions import ResolvedProvider
from service.model.engine.tuning import Tuner
from service.model.loading import Bundle, load_bundle
from service.model.manifest import DEMO_BUNDLE, Parity
from service.monitoring.metrics import Metrics
from service.settings import Settings

_SHOWN_CHARS: Final = 100
"""Characters quoted of an unknown model's name."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Describes a served model: the provider, precision and sizes that are really in use."""

    name: str
    aliases: tuple[str, ...]
    default: bool
    architecture: str
    revision: str
    provider: str
    provider_reason: str
    chosen_by: ChosenBy
    precision: str
    parity: Parity | None
    dim: int
    image_height: int
    image_width: int
    context_length: int
    scoring: ScoringKind
    templates: dict[str, tuple[str, ...]]


class ModelRegistry:
    """All models by name and alias; the first is the default."""

    def __init__(self, models: Sequence[Model], batchers: Iterable[Batcher]) -> None:
        """Raises ConfigurationError if two models claim one name."""
        if not models:
            raise ConfigurationError("No model to serve was given.")
        self.ready = False
        self._models = tuple(models)
        self._batchers = tuple(batchers)
        self._by_name: dict[str, Model] = {}
        for model in models:
            for name in dict.fromkeys((model.name, *model.manifest.aliases)):
                if name in self._by_name:
                    raise ConfigurationError(
                        f"Two models claim the name {name}. Export one of them again under another name: "
                        "anyclass-export export SOURCE OUT --name NAME."
                    )
                self._by_name[name] = model

    @classmethod
    def load(cls, settings: Settings, metrics: Metrics) -> Self:
        """Read, check and open the models of the settings; blocking.

        Raises:
            BundleError: a bundle is damaged or incomplete.
            ProviderUnavailable: the requested provider is not available.
            ConfigurationError: bundle and provider do not go together.
        """
        provider = resolve(settings.provider, compute=settings.compute)
        limits = device_limits(settings)
        # Opening takes longer than checking, so all are checked before the first is opened.
        bundles = [load_bundle(path) for path in (settings.model or DEMO_BUNDLE, *settings.more_models)]
        if settings.provider == "auto" and settings.tune and not TABLE[provider.name].needs_cuda:
            load: Callable[[Bundle], OnnxEngine] = tuner(settings, provider).load
        else:
            load = partial(OnnxEngine.load, provider=provider, threads=settings.threads, limits=limits)
        return cls.of([(bundle, load(bundle)) for bundle in bundles], settings, metrics)

    @classmethod
    def of(cls, parts: Sequence[tuple[Bundle, Engine]], settings: Settings, metrics: Metrics) -> Self:
        """Join bundles with their engines, with one scheduler for each device."""
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
        """Name of the model that answers requests without a model name."""
        return self._models[0].name

    @property
    def healthy(self) -> bool:
        """Whether every device's scheduler is alive; if not, the process should end."""
        return all(batcher.healthy for batcher in self._batchers)

    def get(self, name: str | None = None) -> Model:
        """Return a model by name or alias. Raises UnknownModel, which quotes the name's beginning, escaped."""
        if name is None:
            return self._models[0]
        model = self._by_name.get(name)
        if model is None:
            raise UnknownModel(f"Model {name[:_SHOWN_CHARS]!r} is not served here; use one of {', '.join(self.names)}.")
        return model

    def describe(self) -> list[ModelInfo]:
        """Describe every model."""
        return [self._describe(model) for model in self._models]

    def warm(self) -> None:
        """Run every encoder once, then set `ready`; blocking. Raises BundleError if one fails."""
        for model in self._models:
            model.warm()
        self.ready = True

    async def close(self, timeout_s: float = 5.0) -> None:
        """Run the waiting work, for `timeout_s` at most, then free the models."""
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
            chosen_by=model.engine.chosen_by,
            precision=model.engine.precision,
            parity=manifest.parity,
            dim=manifest.dim,
            image_height=manifest.image.height,
            image_width=manifest.image.width,
            context_length=manifest.text.max_length,
            scoring=manifest.scoring.kind,
            templates=dict(model.bundle.templates),
        )


def device_limits(settings: Settings) -> DeviceLimits:
    """Return the settings' limits on devices, in bytes and rows."""
    cache = settings.engine_cache or _cache_folder() / "engines"
    return DeviceLimits(
        gpu_memory_bytes=None if settings.gpu_memory_mib is None else settings.gpu_memory_mib * 2**20,
        max_batch=settings.max_batch,
        max_batch_texts=settings.max_batch_texts,
        engine_cache=cache,
    )


def tuner(settings: Settings, by_rule: ResolvedProvider) -> Tuner:
    """Return what measures for `auto`; its choices are kept in the user's cache directory."""
    return Tuner(
        by_rule,
        ChoiceStore(_cache_folder() / "choices"),
        compute=settings.compute,
        threads=settings.threads,
        limits=device_limits(settings),
        alone=settings.workers == 1,
    )


def _cache_folder() -> Path:
    return Path(platformdirs.user_cache_dir("anyclass", appauthor=False))
