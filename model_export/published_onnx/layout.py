"""The split layout of published ONNX encoders: names of files, inputs and outputs of their graphs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from onnx import ModelProto, TensorProto, ValueInfoProto

from model_export.checkpoints.file_choice import FULL_PRECISION
from model_export.checkpoints.layouts import ONNX_FOLDER, ONNX_TOWERS
from model_export.errors import SourceError
from model_export.families.family import OnnxLayout
from model_export.graphs.passes import dims_of
from service.model.manifest import Precision

IMAGE_GRAPH, TEXT_GRAPH = ONNX_TOWERS
FULL_GRAPH: Final = "model"

PIXEL_VALUES: Final = "pixel_values"
INPUT_IDS: Final = "input_ids"
ATTENTION_MASK: Final = "attention_mask"
POSITION_IDS: Final = "position_ids"

INTEGERS: Final = frozenset({TensorProto.INT64, TensorProto.INT32})
FLOATS: Final = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})
MASKS: Final = INTEGERS | FLOATS | {TensorProto.BOOL}


VARIANTS: Final[Mapping[str, Precision]] = {
    FULL_PRECISION: "fp32",
    "fp16": "fp16",
    "quantized": "int8",
    "int8": "int8",
    "uint8": "int8",
    "q4": "int4",
    "q4f16": "int4",
    "bnb4": "int4",
}
"""Precision of each published variant, by the names that optimum and transformers.js use; a full graph is looked for in
this order."""


@dataclass(frozen=True)
class Encoder:
    """The checked inputs and output of a graph.

    Attributes:
        inputs: name → element type, as ``onnx.TensorProto`` numbers it.
        output: name of the output in the joint space.
        output_type: its element type.
        dim: its last dimension, if the graph states it.
        length: tokens of each text, if the graph takes only one length.
    """

    inputs: Mapping[str, int]
    output: str
    output_type: int
    dim: int | None
    length: int | None = None


def variants(folder: Path) -> list[str]:
    """Name the variants of which a folder holds both encoders."""
    return [name for name in VARIANTS if all(graph_path(folder, graph, name).exists() for graph in ONNX_TOWERS)]


def graph_path(folder: Path, graph: str, variant: str) -> Path:
    """Return the path of a variant of a graph."""
    suffix = "" if variant == FULL_PRECISION else f"_{variant}"
    return folder / ONNX_FOLDER / f"{graph}{suffix}.onnx"


def image_encoder(model: ModelProto, path: Path, family: OnnxLayout, *, height: int, width: int) -> Encoder:
    """Check a graph that encodes pictures.

    Raises:
        SourceError: a bundle cannot serve its inputs, outputs or axes.
    """
    inputs = _inputs(model, path, {PIXEL_VALUES: FLOATS})
    if PIXEL_VALUES not in inputs:
        raise SourceError(f"{path}: has the inputs {_names(inputs)}, not {PIXEL_VALUES}")
    dims = dims_of(inputs[PIXEL_VALUES])
    wanted = (3, height, width)
    if dims is not None and (
        len(dims) != 4 or any(isinstance(dim, int) and dim != size for dim, size in zip(dims[1:], wanted, strict=True))
    ):
        raise SourceError(f"{path}: {PIXEL_VALUES} is {dims}, pictures are prepared as [batch, 3, {height}, {width}]")
    return _encoder(model, path, inputs, family.image_outputs)


def text_encoder(model: ModelProto, path: Path, family: OnnxLayout) -> Encoder:
    """Check a graph that encodes texts.

    Raises:
        SourceError: a bundle cannot serve its inputs, outputs or axes.
    """
    inputs = _inputs(model, path, {INPUT_IDS: INTEGERS, ATTENTION_MASK: MASKS, POSITION_IDS: INTEGERS})
    if INPUT_IDS not in inputs:
        raise SourceError(f"{path}: has the inputs {_names(inputs)}, not {INPUT_IDS}")
    dims = dims_of(inputs[INPUT_IDS])
    if dims is not None and len(dims) != 2:
        raise SourceError(f"{path}: {INPUT_IDS} is {dims}, texts are [batch, length]")
    length = dims[1] if dims else None
    return _encoder(model, path, inputs, family.text_outputs, length=length if isinstance(length, int) else None)


def _inputs(model: ModelProto, path: Path, known: Mapping[str, frozenset[int]]) -> dict[str, ValueInfoProto]:
    weights = {tensor.name for tensor in model.graph.initializer}  # old graphs list these as inputs too
    inputs = {value.name: value for value in model.graph.input if value.name not in weights}
    unknown = [name for name in inputs if name not in known]
    if unknown:
        raise SourceError(f"{path}: wants the input {unknown[0]}; only {_names(known)} can be given")
    for name, value in inputs.items():
        kind = value.type.tensor_type.elem_type
        if kind not in known[name]:
            raise SourceError(f"{path}: {name} is {TensorProto.DataType.Name(kind)}, which cannot be given")
    return inputs


def _encoder(
    model: ModelProto,
    path: Path,
    inputs: Mapping[str, ValueInfoProto],
    candidates: tuple[str, ...],
    *,
    length: int | None = None,
) -> Encoder:
    for name in (PIXEL_VALUES, INPUT_IDS):
        dims = dims_of(inputs[name]) if name in inputs else None
        if dims and isinstance(dims[0], int):
            raise SourceError(
                f"{path}: takes batches of {dims[0]} only ({name} is {dims}); export it again with a dynamic batch"
            )
    outputs = {value.name: value for value in model.graph.output}
    output = next((name for name in candidates if name in outputs), None)
    if output is None:
        raise SourceError(f"{path}: has the outputs {_names(outputs)}, not {' or '.join(candidates)}")
    kind = outputs[output].type.tensor_type.elem_type
    if kind not in FLOATS:
        raise SourceError(f"{path}: {output} is {TensorProto.DataType.Name(kind)}, not float")
    dims = dims_of(outputs[output])
    if dims is not None and len(dims) != 2:
        raise SourceError(f"{path}: {output} is {dims}, vectors are [batch, dim]")
    dim = dims[1] if dims else None
    types = {name: value.type.tensor_type.elem_type for name, value in inputs.items()}
    return Encoder(types, output, kind, dim if isinstance(dim, int) else None, length)


def _names(names: Mapping[str, object]) -> str:
    return ", ".join(names)
