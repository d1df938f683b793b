"""Runs one graph of a bundle on one provider: arrays → vectors, in batches."""

from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from service.errors import AnyclassError, BundleError, InferenceFailed, NonFiniteOutput
from service.model.arrays import Vectors
from service.model.engine.device_errors import inference_error
from service.model.engine.provider_table import TABLE, DeviceLimits, InputRange
from service.model.engine.sessions import ResolvedProvider, input_name, open_session
from service.model.loading import Bundle
from service.model.manifest import IMAGE_ENCODER, TEXT_ENCODER

Shapes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""The smallest and the largest shape of one row."""

_UNIT_TOLERANCE: Final = 1e-2
"""Largest deviation of a vector's length from 1, allowing for half precision."""
_USUAL_TOKENS: Final = 16
"""Tokens of a typical prompt."""


class Encoder:
    """One graph with one input and one output, float32 `[batch, dim]`; thread-safe."""

    def __init__(
        self,
        bundle: Bundle,
        name: str,
        dtype: str,
        provider: ResolvedProvider,
        shapes: Shapes,
        *,
        threads: int | None,
        limits: DeviceLimits,
    ) -> None:
        """Open the graph `name` of a bundle, whose input has `dtype`, an ONNX Runtime type.

        Raises:
            ProviderUnavailable: the session fell back to another provider.
            BundleError: the runtime refuses the graph, or it breaks the contract; names the file.
        """
        self._path = path = bundle.path / name
        self._dim = dim = bundle.manifest.dim
        max_batch = limits.max_batch if name == IMAGE_ENCODER else limits.max_batch_texts
        self._binds = TABLE[provider.name].binds
        try:
            self._session = open_session(
                path,
                provider,
                threads=threads,
                half=bundle.manifest.precision == "fp16",
                limits=limits,
                key=bundle.manifest.revision,
                shapes=input_range(path, shapes, max_batch) if TABLE[provider.name].builds else None,
            )
        except AnyclassError:
            raise
        except Exception as exc:  # the runtimes' exceptions share no base of their own
            raise BundleError(
                f"{path}: {TABLE[provider.name].runtime} cannot load it on {provider.name} ({exc})"
            ) from exc
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if [node.type for node in inputs] != [dtype]:
            raise BundleError(f"{path}: must have one input, {dtype}")
        if len(outputs) != 1 or outputs[0].type != "tensor(float)" or outputs[0].shape[1:] != [dim]:
            raise BundleError(f"{path}: must have one output, tensor(float) [batch, {dim}]")
        self._input_name, self._output_name = inputs[0].name, outputs[0].name

    def run(self, batch: npt.NDArray[Any]) -> Vectors:
        """Encode `[batch, …]` → float32 `[batch, dim]`.

        Raises:
            InferenceFailed: the runtime failed; NonFiniteOutput: it returned NaN or infinity.
            DeviceOutOfMemory: fewer rows may succeed; DeviceLost: nothing will until the process is restarted.
        """
        if len(batch) == 0:
            return np.empty((0, self._dim), np.float32)
        try:
            vectors = self._run_bound(batch) if self._binds else self._session.run(None, {self._input_name: batch})[0]
        except Exception as exc:  # the runtimes' exceptions share no base of their own
            raise inference_error(str(exc)) from exc
        if not np.isfinite(vectors).all():
            raise NonFiniteOutput("The model's answer is not finite.")
        return vectors

    def _run_bound(self, batch: npt.NDArray[Any]) -> Vectors:
        # A binding belongs to one thread and costs microseconds, so each run makes its own.
        session: Any = self._session  # of ONNX Runtime, because only its providers have `binds`
        binding = session.io_binding()
        vectors = np.empty((len(batch), self._dim), np.float32)
        binding.bind_cpu_input(self._input_name, np.ascontiguousarray(batch))
        binding.bind_output(self._output_name, "cpu", 0, np.float32, vectors.shape, vectors.ctypes.data)
        session.run_with_iobinding(binding)
        return vectors

    def check(self, batch: npt.NDArray[Any]) -> Vectors:
        """Encode, and raise BundleError unless the vectors are finite and of unit length."""
        try:
            vectors = self.run(batch)
        except InferenceFailed as exc:
            raise BundleError(f"{self._path}: fails on its first input: {exc.__cause__ or exc.detail}") from exc
        lengths = np.linalg.norm(vectors, axis=1)
        if np.abs(lengths - 1).max() > _UNIT_TOLERANCE:
            raise BundleError(f"{self._path}: returns vectors of length {lengths.max():.3g}, not of unit length")
        return vectors


def image_encoder(bundle: Bundle, provider: ResolvedProvider, *, threads: int | None, limits: DeviceLimits) -> Encoder:
    """Open a bundle's image encoder. Raises as `Encoder`."""
    image = bundle.manifest.image
    side = (image.height, image.width, 3)
    return Encoder(bundle, IMAGE_ENCODER, "tensor(uint8)", provider, (side, side), threads=threads, limits=limits)


def text_encoder(bundle: Bundle, provider: ResolvedProvider, *, threads: int | None, limits: DeviceLimits) -> Encoder:
    """Open a bundle's text encoder. Raises as `Encoder`."""
    text = bundle.manifest.text
    shortest = text.max_length if text.padding == "fixed" else text.min_length
    shapes = ((shortest,), (text.max_length,))
    return Encoder(bundle, TEXT_ENCODER, "tensor(int64)", provider, shapes, threads=threads, limits=limits)


def input_range(path: Path, row: Shapes, max_batch: int) -> InputRange:
    """Return the shapes of a graph's input, from those of a row and the largest batch."""
    smallest, largest = row
    usual = tuple(max(least, min(most, _USUAL_TOKENS)) for least, most in zip(smallest, largest, strict=True))
    return InputRange(
        name=input_name(path), smallest=(1, *smallest), usual=(max_batch, *usual), largest=(max_batch, *largest)
    )
