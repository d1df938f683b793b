"""fp32 graphs → fp16 and int8 graphs, without torch, by ONNX Runtime's own converters.

What must stay exact stays fp32 in both: LayerNorm and softmax, whose sums leave fp16's range or lose its digits, the
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
from model_export.graphs.passes import EXTERNAL_SUFFIX, anonymize, drop_unused

FP32_OPERATORS: Final = (
    "LayerNormalization",
    "Softmax",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "Sqrt",
    "BatchNormalization",
)
"""Kept in fp32 wherever they stand."""

HEAVY: Final = frozenset({"Conv", "Gather", "MatMul", "Gemm"})
"""The first of these ends the preparation of the input, the last begins the way to the unit vector."""

_TO_FP16: Final = "_cast_to_fp16_node"
"""How the converter names the Casts behind an operator that stays in fp32."""

_SHAPE_ELEMENTS: Final = 64
"""The most that a constant has which says a shape, and the least that is worth leaving out."""


def to_fp16(model: ModelProto) -> ModelProto:
    """Convert a graph to fp16; its input and its output keep their types.

    Raises:
        ExportError: a weight is beyond fp16's range.
    """
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        # Minus infinity masks the future in causal attention; the converter makes the lowest finite number of it.
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
    OnnxModel.graph_topological_sort(converted.graph)  # the converter appends its Casts where they came up
    anonymize(converted)
    return converted


def _infer_shapes(model: ModelProto) -> None:
    """Note the type of every value in the graph, without its weights: onnx infers nothing of more than 2 GiB."""
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
    del graph.value_info[:]
    graph.value_info.extend(shape_inference.infer_shapes(bare).graph.value_info)


def to_int8(path: Path, calibration: Iterable[np.ndarray] | None = None) -> ModelProto:
    """Quantise the MatMuls with constant weights to int8, per output channel; everything else stays.

    Convolutions stay fp32: quantised, they are slower than before on most CPUs, or refused. Weights take 7 of the 8
    bits, so that CPUs without VNNI add the same products without saturating and a bundle answers alike everywhere.

    Args:
        path: the fp32 graph.
        calibration: batches of real inputs. With them the ranges of activations are fixed beforehand; without,
            each run takes its own.

    Returns:
        The quantised graph, already read back.
    """
    with tempfile.TemporaryDirectory() as folder, _quiet():
        out = Path(folder) / "int8.onnx"
        _quantise(path, out, calibration)
        model = onnx.load(out)
    anonymize(model)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back the advice to simplify the graph first, which the exporter has done; it goes to the root logger."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _quantise(path: Path, out: Path, calibration: Iterable[np.ndarray] | None) -> None:
    # What the converter writes on the way is as large as the graph it reads, and protobuf ends at 2 GiB.
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
    """Hands batches to the calibrator, one at a time."""

    def __init__(self, name: str, batches: Iterable[np.ndarray]) -> None:
        self._name = name
        self._batches: Iterator[np.ndarray] = iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def _join_casts(graph: onnx.GraphProto) -> None:
    """Leave out the way through fp16 between two operators that both compute in fp32.

    The converter puts Casts around each of them by itself; even the length that divides a vector would be rounded.
    """
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    exact: dict[str, str] = {}  # what came back from fp16 → what went there
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
    """Name the nodes before the first heavy operator and behind the last."""
    nodes: list[NodeProto] = list(model.graph.node)
    for index, node in enumerate(nodes):
        # The converter blocks nodes by name, and a node need not have one.
        node.name = node.name or f"node_{index}"
    heavy = [index for index, node in enumerate(nodes) if node.op_type in HEAVY]
    if not heavy:
        return [node.name for node in nodes]
    return [node.name for node in (*nodes[: heavy[0]], *nodes[heavy[-1] + 1 :])]


def _without_constant_weights(path: Path) -> list[str]:
    """Name the MatMuls of two activations: attention's own, which int8 would blur for little speed."""
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] not in constants]
