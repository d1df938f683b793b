"""Gives published encoders the input and the output that a bundle promises.

Models are changed in place, so large weights are in memory once. Added operators exist in every provider, and compute
in float32 whatever the precision of the graph.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from model_export.graphs.passes import anonymize, drop_unused, replace_all
from model_export.published_onnx.graph_files import default_opset, nested, tensors
from model_export.published_onnx.layout import ATTENTION_MASK, INPUT_IDS, PIXEL_VALUES, POSITION_IDS, Encoder
from service.model.manifest import ImageSection, TextSection

PIXELS: Final = "pixels"
IDS: Final = "ids"
VECTORS: Final = "vectors"
"""Names as in graphs that are exported from torch."""

BATCH: Final = "batch"
LENGTH: Final = "length"

_MAX_BYTE: Final = 255.0
_ADDED: Final = "served"
"""Prefix of the names of added values."""
_MOVED: Final = "source"
"""Prefix of the source's names that collide with ours."""

_MIN_IR: Final = 8
"""From 4 on, weights need not be listed as inputs; 8, of the time of opset 15, is read by every runtime in use."""
_AXES_ARE_INPUTS: Final = 13
"""From this opset on, ReduceSum takes its axes as an input."""

_RAW_TYPES: Final = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.INT8,
        TensorProto.UINT8,
        TensorProto.INT32,
        TensorProto.INT64,
    }
)

Step = tuple[str, tuple[str, ...], dict[str, Any]]
"""An operator, its inputs behind the first, and its attributes."""


def serve_images(model: ModelProto, encoder: Encoder, section: ImageSection, *, dim: int) -> None:
    """Make a graph take uint8 ``pixels [batch, height, width, 3]`` and give float32 ``vectors [batch, dim]``."""
    graph = model.graph
    _rename(graph, _collisions(graph))
    deviation = np.asarray(section.std, np.float64)
    # (x / 255 - mean) / std as one multiplication and one addition over [batch, 3, height, width].
    scale = _constant(graph, "pixel_scale", _channels(1 / (_MAX_BYTE * deviation)))
    shift = _constant(graph, "pixel_shift", _channels(-np.asarray(section.mean, np.float64) / deviation))
    steps: list[Step] = [
        ("Transpose", (), {"perm": [0, 3, 1, 2]}),
        ("Cast", (), {"to": TensorProto.FLOAT}),
        ("Mul", (scale,), {}),
        ("Add", (shift,), {}),
    ]
    if encoder.inputs[PIXEL_VALUES] != TensorProto.FLOAT:
        steps.append(("Cast", (), {"to": encoder.inputs[PIXEL_VALUES]}))
    before = _chain(PIXELS, PIXEL_VALUES, steps)
    given = helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, [BATCH, section.height, section.width, 3])
    _finish(model, encoder, before, given, dim)


def _channels(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return values.astype(np.float32)[:, None, None]


def serve_texts(model: ModelProto, encoder: Encoder, section: TextSection, *, dim: int) -> None:
    """Make a graph take int64 ``ids [batch, length]`` alone and give float32 ``vectors [batch, dim]``.

    The length is the context with padding ``fixed``, dynamic otherwise. A mask becomes ones: such a text encoder was
    trained to attend to padding, or never attends to it.
    """
    graph = model.graph
    names = _collisions(graph)
    before: list[NodeProto] = []
    if encoder.inputs[INPUT_IDS] == TensorProto.INT64:
        names[INPUT_IDS] = IDS
    else:
        before += _chain(IDS, INPUT_IDS, [("Cast", (), {"to": encoder.inputs[INPUT_IDS]})])
    _rename(graph, names)
    shape = f"{_ADDED}/shape"
    if encoder.inputs.keys() & {ATTENTION_MASK, POSITION_IDS}:
        before.append(helper.make_node("Shape", [IDS], [shape], name=shape))
    if (kind := encoder.inputs.get(ATTENTION_MASK)) is not None:
        one = helper.make_tensor("one", kind, [1], [1])
        before += _chain(shape, ATTENTION_MASK, [("ConstantOfShape", (), {"value": one})])
    if (kind := encoder.inputs.get(POSITION_IDS)) is not None:
        before += _positions(graph, shape, kind)
    length = section.max_length if section.padding == "fixed" else LENGTH
    _finish(model, encoder, before, helper.make_tensor_value_info(IDS, TensorProto.INT64, [BATCH, length]), dim)


def _positions(graph: GraphProto, shape: str, kind: int) -> list[NodeProto]:
    """Count 0, 1, 2, … in every row of ``[batch, length]``."""
    zero = _constant(graph, "zero", np.array(0, np.int64))
    one = _constant(graph, "one", np.array(1, np.int64))
    length, row = f"{_ADDED}/length", f"{_ADDED}/row"
    return [
        helper.make_node("Gather", [shape, one], [length], name=length, axis=0),
        helper.make_node("Range", [zero, length, one], [row], name=row),
        *_chain(row, POSITION_IDS, [("Expand", (shape,), {}), ("Cast", (), {"to": kind})]),
    ]


def _finish(model: ModelProto, encoder: Encoder, before: list[NodeProto], given: Any, dim: int) -> None:  # noqa: ANN401
    graph = model.graph
    replace_all(graph.node, [*before, *graph.node, *_unit_length(model, encoder)])
    replace_all(graph.input, [given])
    replace_all(graph.output, [helper.make_tensor_value_info(VECTORS, TensorProto.FLOAT, [BATCH, dim])])
    drop_unused(graph)
    _encode_alike(graph)
    model.ir_version = max(model.ir_version, _MIN_IR)
    anonymize(model)


def _unit_length(model: ModelProto, encoder: Encoder) -> list[NodeProto]:
    name, nodes = encoder.output, []
    if encoder.output_type != TensorProto.FLOAT:
        name = f"{_ADDED}/embedding"
        nodes += _chain(encoder.output, name, [("Cast", (), {"to": TensorProto.FLOAT})])
    square, total, norm = (f"{_ADDED}/{part}" for part in ("square", "sum", "norm"))
    if default_opset(model) < _AXES_ARE_INPUTS:
        reduce = helper.make_node("ReduceSum", [square], [total], name=total, axes=[1], keepdims=1)
    else:
        axes = _constant(model.graph, "axes", np.array([1], np.int64))
        reduce = helper.make_node("ReduceSum", [square, axes], [total], name=total, keepdims=1)
    return [
        *nodes,
        # Not ReduceL2: ONNX Runtime's tools cannot infer shapes behind it, and without shapes they fuse nothing.
        helper.make_node("Mul", [name, name], [square], name=square),
        reduce,
        helper.make_node("Sqrt", [total], [norm], name=norm),
        helper.make_node("Div", [name, norm], [VECTORS], name=VECTORS),
    ]


def _chain(start: str, end: str, steps: list[Step]) -> list[NodeProto]:
    """Chain operators from the value ``start`` to the value ``end``."""
    nodes = []
    for index, (operator, others, attributes) in enumerate(steps):
        out = end if index == len(steps) - 1 else f"{_ADDED}/{end}/{index}"
        nodes.append(helper.make_node(operator, [start, *others], [out], name=f"{_ADDED}/{end}/{index}", **attributes))
        start = out
    return nodes


def _constant(graph: GraphProto, name: str, value: npt.NDArray[Any]) -> str:
    full = f"{_ADDED}/{name}"
    graph.initializer.append(numpy_helper.from_array(value, full))
    return full


def _collisions(graph: GraphProto) -> dict[str, str]:
    """Return new names for values whose name collides with one of ours."""
    taken = {name for inner in nested(graph) for name in _values(inner)}
    return {
        name: f"{_MOVED}/{name}"
        for name in sorted(taken)
        if name in {PIXELS, IDS, VECTORS} or name.startswith(f"{_ADDED}/")
    }


def _values(graph: GraphProto) -> set[str]:
    named = {item.name for item in (*graph.initializer, *graph.input, *graph.output)}
    return named | {name for node in graph.node for name in node.output}


def _rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Rename values in a graph and in the graphs inside its nodes."""
    for inner in nested(graph):
        for node in inner.node:
            for field in (node.input, node.output):
                for index, name in enumerate(field):
                    if name in names:
                        field[index] = names[name]
        for item in (*inner.initializer, *inner.input, *inner.output):
            item.name = names.get(item.name, item.name)


def _encode_alike(graph: GraphProto) -> None:
    """Store equal weights as equal bytes, in any source; lists of numbers take up to three times the space."""
    for inner in nested(graph):
        for tensor in tensors(inner):
            if tensor.data_type in _RAW_TYPES and not tensor.raw_data:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
            if tensor.data_location == TensorProto.DEFAULT:
                tensor.ClearField("data_location")
