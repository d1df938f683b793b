"""Convert fp32 graphs to fp16 and int8, without torch, by ONNX Runtime's own converters.

Both keep exact parts in fp32: LayerNorm and softmax, whose sums leave fp16's range or lose its digits, the
normalisation of pixels, and the unit length at the end.
"""

import logging
import math
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, shape_inference
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import CalibrationMethod
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from model_export.errors import ExportError
from model_export.graphs.passes import EXTERNAL_SUFFIX, anonymize, drop_unused, replace_all

FP32_OPERATORS: Final = (
    "LayerNormalization",
    "Softmax",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "Sqrt",
    "BatchNormalization",
)
"""Operators that always stay fp32."""

HEAVY: Final = frozenset({"Conv", "Gather", "MatMul", "Gemm"})
"""The first of these ends the preprocessing; the unit vector is computed after the last."""

_TO_FP16: Final = "_cast_to_fp16_node"
"""Suffix by which the converter names the Casts after an operator that stays fp32."""

_SHAPE_ELEMENTS: Final = 64
"""Constants of up to this many elements may be shapes; larger ones are worth leaving out."""


def to_fp16(model: ModelProto) -> ModelProto:
    """Convert a graph to fp16; inputs and outputs keep their types.

    Raises:
        ExportError: a weight is beyond fp16's range.
    """
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        # Minus infinity masks the future in causal attention; the converter replaces it by the lowest finite number.
        beyond = np.abs(values[np.isfinite(values)]) > np.finfo(np.float16).max
        if beyond.any():
            raise ExportError(f"{tensor.name}: holds values beyond fp16's range; export with --precision fp32")
    _infer_shapes(model)
    converted: ModelProto = convert_float_to_float16(
        model,
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=list(FP32_OPERATORS),
        node_block_list=_edges(model),
    )
    _join_casts(converted.graph)
    OnnxModel.graph_topological_sort(converted.graph)  # the converter appends its Casts in any order
    anonymize(converted)
    return converted


def _infer_shapes(model: ModelProto) -> None:
    """Record the type of every value in the graph; leave out the weights, because onnx infers nothing above 2 GiB."""
    graph = model.graph
    bare = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    bare.graph.name = graph.name
    for field in ("node", "input", "output"):
        getattr(bare.graph, field).extend(getattr(graph, field))
    for tensor in graph.initializer:
        if math.prod(tensor.dims) <= _SHAPE_ELEMENTS:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    replace_all(graph.value_info, shape_inference.infer_shapes(bare).graph.value_info)


def to_int8(path: Path, calibration: Iterable[np.ndarray] | None = None) -> ModelProto:
    """Quantise the MatMuls with constant weights to int8, per output channel; keep everything else.

    Convolutions stay fp32: most CPUs run quantised ones more slowly, or refuse them. Weights use 7 of the 8 bits, so
    CPUs without VNNI add the same products without saturating, and a bundle answers alike everywhere.

    Args:
        path: the fp32 graph.
        calibration: batches of real inputs that fix the ranges of activations; without them, each run computes its
            own.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        out = Path(folder) / "int8.onnx"
        _quantise(path, out, calibration)
        model = onnx.load(out)
    anonymize(model)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the root logger's advice to simplify the graph, which the exporter has done."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _quantise(path: Path, out: Path, calibration: Iterable[np.ndarray] | None) -> None:
    # The converter's temporary file is as large as its input, and protobuf ends at 2 GiB.
    large = path.with_name(f"{path.name}{EXTERNAL_SUFFIX}").exists()
    if calibration is None:
        quantize_dynamic(
            path,
            out,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
            extra_options={"MatMulConstBOnly": True},
        )
    else:
        name = onnx.load(path, load_external_data=False).graph.input[0].name
        quantize_static(
            path,
            out,
            _Batches(name, calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=_without_constant_weights(path),
            per_channel=True,
            reduce_range=True,
            use_external_data_format=large,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # the base has no types
    """Passes batches to the calibrator, one at a time."""

    def __init__(self, name: str, batches: Iterable[np.ndarray]) -> None:
        self._name = name
        self._batches: Iterator[np.ndarray] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def _join_casts(graph: onnx.GraphProto) -> None:
    """Remove the conversion to fp16 and back between two operators that both compute in fp32.

    The converter puts Casts around every such operator; even the length that divides a vector would be rounded.
    """
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    exact: dict[str, str] = {}  # value cast back from fp16 → value before both Casts
    for name, back in casts.items():
        there = casts.get(back.input[0])
        if there is not None and there.name.endswith(_TO_FP16) and back.attribute[0].i == onnx.TensorProto.FLOAT:
            exact[name] = there.input[0]
    outputs = {exact[value.name]: value.name for value in graph.output if value.name in exact}
    for node in graph.node:
        for index, name in enumerate(node.input):
            source = exact.get(name, name)
            node.input[index] = outputs.get(source, source)
        for index, name in enumerate(node.output):
            if name in exact and name in outputs.values():
                node.output[index] = f"{name}_unused"
            else:
                node.output[index] = outputs.get(name, name)
    drop_unused(graph)


def _edges(model: ModelProto) -> list[str]:
    """Return the names of the nodes before the first heavy operator and after the last."""
    nodes: list[NodeProto] = list(model.graph.node)
    for index, node in enumerate(nodes):
        # The converter blocks nodes by name, but a node may lack one.
        node.name = node.name or f"node_{index}"
    heavy = [index for index, node in enumerate(nodes) if node.op_type in HEAVY]
    if not heavy:
        return [node.name for node in nodes]
    return [node.name for node in (*nodes[: heavy[0]], *nodes[heavy[-1] + 1 :])]


def _without_constant_weights(path: Path) -> list[str]:
    """Return the names of the MatMuls of two activations: attention's, where int8 costs accuracy for little speed."""
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in constants]
