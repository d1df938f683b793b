"""Arrays → unit vectors: the contract of an inference engine, and the one on ONNX Runtime."""

import logging
import time
from dataclasses import replace
from typing import Final, Protocol, Self

import numpy as np

from service.errors import BundleError, ConfigurationError, InferenceFailed, ProviderUnavailable
from service.model.arrays import Ids, Pixels, Vectors
from service.model.engine.encoder import Encoder, Shapes
from service.model.engine.provider_table import TABLE, DeviceLimits
from service.model.engine.providers import resolve
from service.model.engine.sessions import ResolvedProvider
from service.model.loading import Bundle
from service.model.manifest import IMAGE_ENCODER, TEXT_ENCODER
from service.model.probes import quick_probes

_FULL_FLOATS: Final = frozenset({"fp32", "fp16-stored"})
"""Precisions of a bundle whose graphs compute in 32-bit floats, for which a provider may take bf16."""
_MIN_COSINE: Final = 0.99
_MIN_COSINE_QUANTISED: Final = 0.95
"""How near a provider must come to a bundle's probes. bf16 costs less than 0.001, a graph computed wrongly far more."""
_NO_LIMITS: Final = DeviceLimits()

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """What runs a model. Synchronous and thread-safe: any number of threads may call at the same time."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def provider(self) -> str:
        """Where it computes: `cpu`, `cuda` …; never `auto`."""

    @property
    def precision(self) -> str:
        """What it computes in; with `provider` it says which vectors are interchangeable.

        The manifest's precision, or `bf16` where graphs of 32-bit floats are computed so.
        """

    @property
    def provider_reason(self) -> str:
        """Why it computes there, for the log of the start."""

    def encode_images(self, pixels: Pixels) -> Vectors:
        """Encode uint8 `[batch, height, width, 3]` → float32 `[batch, dim]`, unit length.

        Raises:
            InferenceFailed: the runtime refused; NonFiniteOutput: it answered NaN or infinity.
            DeviceOutOfMemory: fewer rows may succeed; DeviceLost: nothing will until the process is started anew.
        """

    def encode_texts(self, ids: Ids) -> Vectors:
        """Encode int64 `[batch, length]` → float32 `[batch, dim]`, unit length.

        Raises:
            InferenceFailed: the runtime refused; NonFiniteOutput: it answered NaN or infinity.
            DeviceOutOfMemory: fewer rows may succeed; DeviceLost: nothing will until the process is started anew.
        """

    def close(self) -> None:
        """Free the model. Runs under way end well, later ones raise InferenceFailed."""


class OnnxEngine:
    """An `Engine` on ONNX Runtime: one session for each encoder."""

    def __init__(
        self,
        bundle: Bundle,
        provider: ResolvedProvider,
        *,
        threads: int | None = None,
        limits: DeviceLimits = _NO_LIMITS,
    ) -> None:
        if bundle.manifest.precision not in _FULL_FLOATS:
            provider = replace(provider, compute="fp32")
        self._manifest = bundle.manifest
        self._provider = provider

        def encoder(name: str, dtype: str, shapes: Shapes) -> Encoder:
            return Encoder(bundle, name, dtype, provider, shapes, threads=threads, limits=limits)

        image, text = bundle.manifest.image, bundle.manifest.text
        side = (image.height, image.width, 3)
        shortest = text.max_length if text.padding == "fixed" else text.min_length
        self._images: Encoder | None = encoder(IMAGE_ENCODER, "tensor(uint8)", (side, side))
        self._texts: Encoder | None = encoder(TEXT_ENCODER, "tensor(int64)", ((shortest,), (text.max_length,)))

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        provider: str | ResolvedProvider = "auto",
        *,
        threads: int | None = None,
        limits: DeviceLimits = _NO_LIMITS,
        force_precision: bool = False,
    ) -> Self:
        """Open both encoders of a bundle, and see that the provider computes them rightly.

        Args:
            bundle: the model.
            provider: a name as in the settings, or what `resolve` returned.
            threads: CPU threads of one run; all that this process may use if None.
            limits: what the deployment sets of devices.
            force_precision: also take an fp16 bundle where it would be computed in fp32, and a provider that does not
                compute the bundle's probes rightly: for tools that measure that themselves.

        Raises:
            ProviderUnavailable: the provider is not there, or computes this model wrongly.
            ConfigurationError: fp16 on the CPU, which has no fp16 kernels and computes another model's numbers.
            BundleError: a graph that ONNX Runtime refuses or that does not keep the contract, naming the file.
        """
        resolved = resolve(provider) if isinstance(provider, str) else provider
        precision = bundle.manifest.precision
        if precision == "fp16" and not TABLE[resolved.name].fp16 and not force_precision:
            raise ConfigurationError(
                f"Model {bundle.manifest.name} is fp16, which provider {resolved.name} would compute in fp32; "
                "serve it on a GPU, or export it with --precision fp32 or fp16-stored."
            )
        if resolved.second is None:
            return cls._checked(bundle, resolved, threads, limits, check=not force_precision)
        if precision not in _FULL_FLOATS:
            why = f"auto: {resolved.name} is no faster for {precision}."
        else:
            try:
                return cls._checked(bundle, resolved, threads, limits, check=not force_precision)
            except (BundleError, ProviderUnavailable) as exc:
                _log.warning("model %s is not run on %s: %s", bundle.manifest.name, resolved.name, exc.detail)
                why = f"auto: {exc.detail}"
        return cls(bundle, replace(resolved.second, reason=why), threads=threads, limits=limits)

    @classmethod
    def _checked(
        cls, bundle: Bundle, provider: ResolvedProvider, threads: int | None, limits: DeviceLimits, *, check: bool
    ) -> Self:
        engine = cls(bundle, provider, threads=threads, limits=limits)
        if check and not TABLE[provider.name].trusted:
            engine.compare(bundle)
        return engine

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._manifest.dim

    @property
    def provider(self) -> str:
        """Where it computes: `cpu`, `cuda`, `tensorrt` or `openvino`."""
        return self._provider.name

    @property
    def precision(self) -> str:
        """The manifest's precision, or `bf16` where graphs of 32-bit floats are computed so."""
        return "bf16" if self._provider.compute == "bf16" else self._manifest.precision

    @property
    def provider_reason(self) -> str:
        """Why it computes there, for the log of the start."""
        return self._provider.reason

    def encode_images(self, pixels: Pixels) -> Vectors:
        """Encode uint8 `[batch, height, width, 3]` → float32 `[batch, dim]`, unit length."""
        return _open(self._images).run(pixels)

    def encode_texts(self, ids: Ids) -> Vectors:
        """Encode int64 `[batch, length]` → float32 `[batch, dim]`, unit length."""
        return _open(self._texts).run(ids)

    def warm(self) -> None:
        """Run both encoders once, so that the first request pays for no set-up, and check what they answer.

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
        """Encode a few of the bundle's probes, where it has any, and compare.

        Raises:
            ProviderUnavailable: the vectors are others than they must be.
            BundleError: an encoder fails, or the probes cannot be read.
        """
        probes = quick_probes(bundle)
        if probes is None:
            return
        least = _MIN_COSINE if self._manifest.precision in {*_FULL_FLOATS, "fp16"} else _MIN_COSINE_QUANTISED
        for name, encoder, inputs, wanted in (
            (IMAGE_ENCODER, _open(self._images), probes.pixels, probes.image_vectors),
            (TEXT_ENCODER, _open(self._texts), probes.ids, probes.text_vectors),
        ):
            cosine = float((encoder.check(inputs) * wanted).sum(axis=1).min())
            if not cosine >= least:
                raise ProviderUnavailable(
                    f"Provider {self.provider} computes {name} of model {self._manifest.name} wrongly: its vectors are "
                    f"at cosine {cosine:.4f} to those of the export. Take another provider."
                )

    def close(self) -> None:
        """Free the sessions once the runs under way have ended; later calls raise InferenceFailed."""
        self._images = self._texts = None


def _open(encoder: Encoder | None) -> Encoder:
    if encoder is None:
        raise InferenceFailed("The model is closed.")
    return encoder
