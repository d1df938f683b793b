"""Runs the source's own graphs as they were published: the reference for a bundle made from them.

numpy computes the steps before and behind the graphs. One graph is open at a time, since large ones fill a machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from onnx import helper

from model_export.bundles.probes import Inputs
from model_export.bundles.verification import Thresholds
from model_export.errors import SourceError
from model_export.published_onnx.graph_files import one_line
from model_export.published_onnx.layout import ATTENTION_MASK, INPUT_IDS, PIXEL_VALUES, POSITION_IDS, Encoder
from model_export.published_onnx.source import OnnxSource
from service.model.arrays import Vectors
from service.model.engine.providers import resolve
from service.model.engine.sessions import Session, open_session

TOGETHER: Final = 7
"""Size of the batch on which graphs are compared whose ranges depend on the batch."""

_MAX_BYTE: Final = 255.0


@dataclass(frozen=True)
class Reference:
    """The vectors of a published graph for the probes, float32 and of unit length.

    Attributes:
        alone: ``[inputs, dim]``, of each input alone.
        together: ``[TOGETHER, dim]``, of the first inputs in one batch, texts at full length.
    """

    alone: Vectors
    together: Vectors


@dataclass(frozen=True)
class TextReference(Reference):
    """The same for texts; `alone` is at their own length, or at full length with padding ``fixed``.

    Attributes:
        padding: ``longest`` if padding changes no vector.
        difference: largest change of a vector's number by padding; None if not measured.
    """

    padding: Literal["longest", "fixed"]
    difference: float | None


def image_reference(source: OnnxSource, path: Path, pixels: npt.NDArray[np.uint8]) -> Reference:
    """Run the published image graph.

    Args:
        path: of the graph beside its weights, readable by ONNX Runtime.
        pixels: uint8 ``[images, height, width, 3]``.

    Raises:
        SourceError: ONNX Runtime refuses the graph.
        ProviderUnavailable: ONNX Runtime is not installed.
    """
    graph = _Graph(path, source.image_path, source.image_encoder)
    values = (pixels / _MAX_BYTE - np.asarray(source.image.mean)) / np.asarray(source.image.std)
    prepared = values.astype(np.float32).transpose(0, 3, 1, 2)
    alone = [graph.run({PIXEL_VALUES: each[None]}) for each in prepared]
    return Reference(np.concatenate(alone), graph.run({PIXEL_VALUES: prepared[:TOGETHER]}))


def text_reference(source: OnnxSource, path: Path, inputs: Inputs, limits: Thresholds) -> TextReference:
    """Run the published text graph, and measure whether padding changes its vectors.

    Args:
        path: of the graph beside its weights, readable by ONNX Runtime.
        limits: change of a vector up to which padding counts as harmless.

    Raises:
        SourceError: ONNX Runtime refuses the graph.
        ProviderUnavailable: ONNX Runtime is not installed.
    """
    graph = _Graph(path, source.text_path, source.text_encoder)
    together = graph.run(_text(inputs.ids[:TOGETHER]))
    difference = None
    if source.text.padding == "longest":
        rows = zip(inputs.ids, inputs.lengths, strict=True)
        alone = np.concatenate([graph.run(_text(ids[None, :length])) for ids, length in rows])
        padded = graph.run(_text(inputs.ids))
        difference = float(np.abs(alone - padded).max())
        cosine = float((alone * padded).sum(axis=1).min())
        if difference <= limits.max_abs_difference and cosine >= limits.min_cosine:
            return TextReference(alone, together, "longest", difference)
    alone = np.concatenate([graph.run(_text(ids[None])) for ids in inputs.ids])
    return TextReference(alone, together, "fixed", difference)


def _text(ids: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    """Return every input that a graph may have, for ids ``[batch, length]``."""
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    return {INPUT_IDS: ids, ATTENTION_MASK: np.ones_like(ids), POSITION_IDS: positions}


class _Graph:
    """One graph in ONNX Runtime on the CPU, with its inputs and the output in the joint space."""

    def __init__(self, path: Path, published: Path, encoder: Encoder) -> None:
        self._published = published
        self._types = {name: helper.tensor_dtype_to_np_dtype(kind) for name, kind in encoder.inputs.items()}
        cpu = resolve("cpu")
        try:
            self._session: Session = open_session(path, cpu)
        except Exception as exc:  # ONNX Runtime's exceptions share no base of their own
            raise SourceError(
                f"{published}: ONNX Runtime cannot load it on the CPU ({one_line(exc)}); take another variant"
            ) from exc
        self._output = [value.name for value in self._session.get_outputs()].index(encoder.output)

    def run(self, values: Mapping[str, npt.NDArray[Any]]) -> Vectors:
        given = {name: np.ascontiguousarray(values[name], dtype=dtype) for name, dtype in self._types.items()}
        try:
            embedding = self._session.run(None, given)[self._output].astype(np.float64)
        except Exception as exc:  # as above
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in given.items())
            raise SourceError(f"{self._published}: ONNX Runtime cannot run it on {shapes} ({one_line(exc)})") from exc
        vectors: Vectors = (embedding / np.linalg.norm(embedding, axis=1, keepdims=True)).astype(np.float32)
        return vectors
