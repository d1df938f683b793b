"""The contract of an inference engine, arrays → unit vectors, and the engine that runs a bundle's graphs."""

import logging
import time
from dataclasses import replace
from typing import Final, Protocol, Self

import numpy as np

from service.errors import BundleError, ConfigurationError, InferenceFailed, ProviderUnavailable
from service.model.arrays import Ids, Pixels, Vectors
from service.model.choices import ChosenBy
from service.model.engine.agreement import FULL_FLOATS, agreement, least_cosine
from service.model.engine.cpus import available_cpus
from service.model.engine.encoder import Encoder, image_encoder, text_encoder
from service.model.engine.provider_table import TABLE, DeviceLimits
from service.model.engine.providers import resolve
from service.model.engine.sessions import ResolvedProvider
from service.model.loading import Bundle
from service.model.manifest import IMAGE_ENCODER, TEXT_ENCODER
from service.model.probes import quick_probes

_NO_LIMITS: Final = DeviceLimits()

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """Runs a model. Synchronous and thread-safe: any number of threads may call at the same time."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def provider(self) -> str:
        """Name of the provider: `cpu`, `cuda` …; never `auto`."""

    @property
    def precision(self) -> str:
        """The manifest's precision, or `bf16` if float32 graphs are computed in it.

        Vectors are interchangeable if `provider` and `precision` are equal.
        """

    @property
    def provider_reason(self) -> str:
        """The reason for the choice of the provider, for the log."""

    @property
    def chosen_by(self) -> ChosenBy:
        """The way the provider was chosen."""

    @property
    def cpu_threads(self) -> int:
        """CPU threads of one run."""

    def encode_images(self, pixels: Pixels) -> Vectors:
        """Encode uint8 `[batch, height, width, 3]` → float32 `[batch, dim]`, unit length.

        Raises:
            InferenceFailed: the runtime failed; NonFiniteOutput: it returned NaN or infinity.
            DeviceOutOfMemory: fewer rows may succeed; DeviceLost: nothing will until the process is restarted.
        """

    def encode_texts(self, ids: Ids) -> Vectors:
        """Encode int64 `[batch, length]` → float32 `[batch, dim]`, unit length.

        Raises:
            InferenceFailed: the runtime failed; NonFiniteOutput: it returned NaN or infinity.
            DeviceOutOfMemory: fewer rows may succeed; DeviceLost: nothing will until the process is restarted.
        """

    def close(self) -> None:
        """Free the model. Running calls finish, later ones raise InferenceFailed."""


class OnnxEngine:
    """An `Engine` on ONNX Runtime or OpenVINO: one session for each encoder."""

    def __init__(
        self,
        bundle: Bundle,
        provider: ResolvedProvider,
        *,
        threads: int | None = None,
        limits: DeviceLimits = _NO_LIMITS,
        images: Encoder | None = None,
    ) -> None:
        """Open both encoders; `images` is the image encoder if it is open already, on the same provider."""
        if bundle.manifest.precision not in FULL_FLOATS:
            provider = replace(provider, compute="fp32")
        self._manifest = bundle.manifest
        self._provider = provider
        self._threads = threads or available_cpus()
        self._images: Encoder | None = images or image_encoder(bundle, provider, threads=threads, limits=limits)
        self._texts: Encoder | None = text_encoder(bundle, provider, threads=threads, limits=limits)

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        provider: str | ResolvedProvider = "auto",
        *,
        threads: int | None = None,
        limits: DeviceLimits = _NO_LIMITS,
        force_precision: bool = False,
        images: Encoder | None = None,
    ) -> Self:
        """Open both encoders of a bundle, and check that the provider computes them correctly.

        Args:
            provider: a name as in the settings, or a result of `resolve`.
            threads: CPU threads of one run; all that this process may use if None.
            force_precision: accept an fp16 bundle that would be computed in fp32, and skip the check with the bundle's
                probes: for tools that measure both themselves.
            images: the image encoder if it is open already, on the same provider with as many threads.

        Raises:
            ProviderUnavailable: the provider is not available, or computes this model wrongly.
            ConfigurationError: the bundle is fp16, and the provider would compute it in fp32 with other results.
            BundleError: the runtime refuses a graph, or it breaks the contract; names the file.
        """
        resolved = resolve(provider) if isinstance(provider, str) else provider
        precision = bundle.manifest.precision
        if precision == "fp16" and not TABLE[resolved.name].fp16 and not force_precision:
            raise ConfigurationError(
                f"Model {bundle.manifest.name} is fp16, which provider {resolved.name} would compute in fp32; "
                "serve it on a GPU, or export it with --precision fp32 or fp16-stored."
            )
        if resolved.second is None:
            return cls._checked(bundle, resolved, threads, limits, images, check=not force_precision)
        if precision not in FULL_FLOATS and resolved.chosen_by != "measurement":
            why = f"auto: {resolved.name} is no faster for {precision}."
        else:
            try:
                return cls._checked(bundle, resolved, threads, limits, images, check=not force_precision)
            except (BundleError, ProviderUnavailable) as exc:
                _log.warning("model %s is not run on %s: %s", bundle.manifest.name, resolved.name, exc.detail)
                why = f"auto: {exc.detail}"
        return cls(bundle, replace(resolved.second, reason=why), threads=threads, limits=limits)

    @classmethod
    def _checked(
        cls,
        bundle: Bundle,
        provider: ResolvedProvider,
        threads: int | None,
        limits: DeviceLimits,
        images: Encoder | None,
        *,
        check: bool,
    ) -> Self:
        engine = cls(bundle, provider, threads=threads, limits=limits, images=images)
        if check and not TABLE[provider.name].trusted:
            engine.compare(bundle)
        return engine

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._manifest.dim

    @property
    def provider(self) -> str:
        """Name of the provider, a key of `provider_table.TABLE`."""
        return self._provider.name

    @property
    def precision(self) -> str:
        """The manifest's precision, or `bf16` if float32 graphs are computed in it."""
        return "bf16" if self._provider.compute == "bf16" else self._manifest.precision

    @property
    def provider_reason(self) -> str:
        """The reason for the choice of the provider, for the log."""
        return self._provider.reason

    @property
    def chosen_by(self) -> ChosenBy:
        """The way the provider was chosen."""
        return self._provider.chosen_by

    @property
    def cpu_threads(self) -> int:
        """CPU threads of one run."""
        return self._threads

    def encode_images(self, pixels: Pixels) -> Vectors:
        """Encode uint8 `[batch, height, width, 3]` → float32 `[batch, dim]`, unit length."""
        return _open(self._images).run(pixels)

    def encode_texts(self, ids: Ids) -> Vectors:
        """Encode int64 `[batch, length]` → float32 `[batch, dim]`, unit length."""
        return _open(self._texts).run(ids)

    def warm(self) -> None:
        """Run both encoders once, so that the first request pays for no set-up, and check their vectors.

        Raises:
            BundleError: an encoder fails, or its vectors are not finite and of unit length.
        """
        image, text = self._manifest.image, self._manifest.text
        length = text.max_length if text.padding == "fixed" else text.min_length
        ids = np.full((1, length), text.end_of_text_id, np.int64)
        started = time.perf_counter()
        _open(self._images).check(np.full((1, image.height, image.width, 3), 128, np.uint8))
        _open(self._texts).check(ids)
        _log.debug("model warm after %.3f s", time.perf_counter() - started)

    def compare(self, bundle: Bundle) -> None:
        """Encode a few of the bundle's probes, if it has any, and compare the vectors with the export's.

        Raises:
            ProviderUnavailable: the vectors differ.
            BundleError: an encoder fails, or the probes cannot be read.
        """
        probes = quick_probes(bundle)
        if probes is None:
            return
        least = least_cosine(self._manifest.precision)
        for name, encoder, inputs, wanted in (
            (IMAGE_ENCODER, _open(self._images), probes.pixels, probes.image_vectors),
            (TEXT_ENCODER, _open(self._texts), probes.ids, probes.text_vectors),
        ):
            cosine = agreement(encoder, inputs, wanted)
            if not cosine >= least:
                raise ProviderUnavailable(
                    f"Provider {self.provider} computes {name} of model {self._manifest.name} wrongly: its vectors are "
                    f"at cosine {cosine:.4f} to those of the export. Choose another provider."
                )

    def close(self) -> None:
        """Free the sessions once the running calls have finished; later calls raise InferenceFailed."""
        self._images = self._texts = None


def _open(encoder: Encoder | None) -> Encoder:
    if encoder is None:
        raise InferenceFailed("The model is closed.")
    return encoder
