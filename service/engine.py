"""Arrays → unit vectors: the contract of an inference engine, and the one on ONNX Runtime."""

import logging
import time
from pathlib import Path
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from service.errors import AnyclassError, BundleError, ConfigurationError, InferenceFailed, NonFiniteOutput
from service.manifest import IMAGE_ENCODER, TEXT_ENCODER, Bundle
from service.providers import ResolvedProvider, open_session, resolve

Pixels: TypeAlias = npt.NDArray[np.uint8]
Ids: TypeAlias = npt.NDArray[np.int64]
Vectors: TypeAlias = npt.NDArray[np.float32]

_UNIT_TOLERANCE = 1e-2
"""How far from 1 a vector's length may be when the graph computes in half precision."""

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
        """The manifest's precision; with `provider` it says which vectors are interchangeable."""

    def encode_images(self, pixels: Pixels) -> Vectors:
        """Encode uint8 `[batch, height, width, 3]` → float32 `[batch, dim]`, unit length.

        Raises:
            InferenceFailed: the runtime refused; NonFiniteOutput: it answered NaN or infinity.
        """

    def encode_texts(self, ids: Ids) -> Vectors:
        """Encode int64 `[batch, length]` → float32 `[batch, dim]`, unit length.

        Raises:
            InferenceFailed: the runtime refused; NonFiniteOutput: it answered NaN or infinity.
        """

    def close(self) -> None:
        """Free the model. Runs under way end well, later ones raise InferenceFailed."""


class OnnxEngine:
    """An `Engine` on ONNX Runtime: one session for each encoder."""

    def __init__(self, bundle: Bundle, provider: ResolvedProvider, *, threads: int | None = None) -> None:
        self._manifest = bundle.manifest
        self._provider = provider
        self._images: _Encoder | None = _Encoder(
            bundle.path / IMAGE_ENCODER, provider, "tensor(uint8)", self.dim, threads
        )
        self._texts: _Encoder | None = _Encoder(
            bundle.path / TEXT_ENCODER, provider, "tensor(int64)", self.dim, threads
        )

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        provider: str | ResolvedProvider = "auto",
        *,
        threads: int | None = None,
        force_precision: bool = False,
    ) -> Self:
        """Open both encoders of a bundle.

        Args:
            bundle: the model.
            provider: a name as in the settings, or what `resolve` returned.
            threads: CPU threads of one run; all that this process may use if None.
            force_precision: also take an fp16 bundle where it would be computed in fp32.

        Raises:
            ProviderUnavailable: the provider is not there.
            ConfigurationError: fp16 on the CPU, which has no fp16 kernels and computes another model's numbers.
            BundleError: a graph that ONNX Runtime refuses or that does not keep the contract, naming the file.
        """
        resolved = resolve(provider) if isinstance(provider, str) else provider
        if bundle.manifest.precision == "fp16" and resolved.name == "cpu" and not force_precision:
            raise ConfigurationError(
                f"Model {bundle.manifest.name} is fp16, which the CPU would compute in fp32; "
                "serve it on a GPU, or export it with --precision fp32 or fp16-stored."
            )
        return cls(bundle, resolved, threads=threads)

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
        """The manifest's precision."""
        return self._manifest.precision

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

    def close(self) -> None:
        """Free the sessions once the runs under way have ended; later calls raise InferenceFailed."""
        self._images = self._texts = None


class _Encoder:
    """One graph with one input and one output, float32 `[batch, dim]`."""

    def __init__(self, path: Path, provider: ResolvedProvider, dtype: str, dim: int, threads: int | None) -> None:
        self._path = path
        self._dim = dim
        try:
            self._session = open_session(path, provider, threads=threads)
        except AnyclassError:
            raise
        except Exception as exc:  # ONNX Runtime's exceptions share no base of their own
            raise BundleError(f"{path}: ONNX Runtime cannot load it on {provider.name} ({exc})") from exc
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if [node.type for node in inputs] != [dtype]:
            raise BundleError(f"{path}: must have one input, {dtype}")
        if len(outputs) != 1 or outputs[0].type != "tensor(float)" or outputs[0].shape[1:] != [dim]:
            raise BundleError(f"{path}: must have one output, tensor(float) [batch, {dim}]")
        self._input_name = inputs[0].name

    def run(self, batch: npt.NDArray[Any]) -> Vectors:
        if len(batch) == 0:
            return np.empty((0, self._dim), np.float32)
        try:
            vectors: Vectors = self._session.run(None, {self._input_name: batch})[0]
        except Exception as exc:  # ONNX Runtime's exceptions share no base of their own
            raise InferenceFailed("The model could not be run on this input.") from exc
        if not np.isfinite(vectors).all():
            raise NonFiniteOutput("The model's answer is not finite.")
        return vectors

    def check(self, batch: npt.NDArray[Any]) -> None:
        try:
            vectors = self.run(batch)
        except InferenceFailed as exc:
            raise BundleError(f"{self._path}: fails on its first input: {exc.__cause__ or exc.detail}") from exc
        lengths = np.linalg.norm(vectors, axis=1)
        if np.abs(lengths - 1).max() > _UNIT_TOLERANCE:
            raise BundleError(f"{self._path}: answers vectors of length {lengths.max():.3g}, not of unit length")


def _open(encoder: _Encoder | None) -> _Encoder:
    if encoder is None:
        raise InferenceFailed("The model is closed.")
    return encoder
