"""Passes over an ONNX graph, without torch: less shape arithmetic, no traces of the machine, fp16 storage.

They change a model in place. Each matches one pattern of the exporter and leaves other graphs unchanged; every pass
is optional for correctness.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

MIN_FP16_ELEMENTS: Final = 1024
EXTERNAL_DATA_BYTES: Final = 1_800_000_000
"""Above this, weights go into a file beside the graph: protobuf ends at 2 GiB."""
EXTERNAL_SUFFIX: Final = ".data"
"""Suffix of the file of weights, after the graph's own name."""

ATTENTION_MASK: Final = "attention_mask"

Dims = list[int | str | None]


def replace_all(field: Any, items: Iterable[Any]) -> None:  # noqa: ANN401 - protobuf's repeated fields share no base
    """Replace the content of a repeated field."""
    kept = list(items)
    del field[:]
    field.extend(kept)


def optimize(model: ModelProto) -> None:
    """Run every pass that keeps the numbers unchanged."""
    copy_dimensions(model.graph)
    gather_by_batch(model.graph)
    name_mask(model.graph)
    drop_unused(model.graph)
    anonymize(model)


def copy_dimensions(graph: GraphProto) -> None:
    """Replace every Reshape's shape that is computed from input dimensions by a constant.

    ONNX's Reshape copies a dimension for 0 in the shape, and infers one for -1. Copying the dynamic axes, no layer
    computes shapes.
    """
    producers = _producers(graph)
    dims = {value.name: dims_of(value) for value in (*graph.input, *graph.value_info)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes: dict[tuple[int, ...], str] = {}
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in producers:
            continue
        wanted = _computed_shape(producers[node.input[1]], producers, dims, constants)
        given = dims.get(node.input[0])
        if wanted is None or given is None:
            continue
        shape = [
            0 if isinstance(dim, str) and i < len(given) and given[i] == dim else dim for i, dim in enumerate(wanted)
        ]
        if sum(isinstance(dim, str) or dim == -1 for dim in shape) > 1:
            continue
        fixed = tuple(-1 if isinstance(dim, str) else dim for dim in shape)
        if fixed not in shapes:
            name = f"shape_{len(shapes)}"
            shapes[fixed] = name
            graph.initializer.append(numpy_helper.from_array(np.array(fixed, dtype=np.int64), name))
        node.input[1] = shapes[fixed]
        replace_all(node.attribute, [attribute for attribute in node.attribute if attribute.name != "allowzero"])


def gather_by_batch(graph: GraphProto) -> None:
    """Gather one position of each row with GatherND's batch dimension instead of a range of row numbers."""
    producers = _producers(graph)
    for node in graph.node:
        if node.op_type != "GatherND" or _attribute(node, "batch_dims", 0) != 0:
            continue
        pairs = producers.get(node.input[1])
        if pairs is None or pairs.op_type != "Concat" or len(pairs.input) != 2:
            continue
        rows, positions = (producers.get(name) for name in pairs.input)
        if rows is None or positions is None or {rows.op_type, positions.op_type} != {"Unsqueeze"}:
            continue
        numbers = producers.get(rows.input[0])
        if numbers is None or numbers.op_type != "Range":
            continue
        node.input[1] = positions.output[0]
        replace_all(node.attribute, [helper.make_attribute("batch_dims", 1)])


def name_mask(graph: GraphProto) -> None:
    """Rename the first mask added to attention's scores to the name that ONNX Runtime's offline tools look for.

    They fuse an attention without a mask, or with a four-dimensional mask of this name.
    """
    producers = _producers(graph)
    sums = (producers.get(node.input[0]) for node in graph.node if node.op_type == "Softmax")
    mask = next((node.input[1] for node in sums if node is not None and node.op_type == "Add"), None)
    if mask not in producers or ATTENTION_MASK in producers:
        return
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == mask:
                    names[index] = ATTENTION_MASK


def drop_unused(graph: GraphProto) -> None:
    """Remove nodes and initializers that no output depends on."""
    while True:
        used = _read_names(graph) | {value.name for value in graph.output}
        nodes = [node for node in graph.node if any(name in used for name in node.output)]
        weights = [tensor for tensor in graph.initializer if tensor.name in used]
        if len(nodes) == len(graph.node) and len(weights) == len(graph.initializer):
            return
        replace_all(graph.node, nodes)
        replace_all(graph.initializer, weights)


def anonymize(model: ModelProto) -> None:
    """Remove traces of exporter, source files and machine, and everything that runtimes infer."""
    model.producer_name = model.producer_version = model.doc_string = model.domain = ""
    del model.metadata_props[:]
    used = {node.domain for node in model.graph.node}
    replace_all(model.opset_import, [opset for opset in model.opset_import if opset.domain in used])
    graph = model.graph
    graph.name = "encoder"
    graph.doc_string = ""
    del graph.metadata_props[:]
    del graph.value_info[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


def store_fp16(model: ModelProto) -> int:
    """Store large fp32 initializers as fp16 with a Cast to fp32, if fp16 represents them exactly.

    Nothing is rounded, so the graph computes the same; a runtime folds the Casts when it loads the graph.

    Returns:
        The bytes saved.
    """
    graph = model.graph
    casts: list[NodeProto] = []
    saved = 0
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) < MIN_FP16_ELEMENTS:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.fp16"))
        casts.append(helper.make_node("Cast", [f"{name}.fp16"], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
        saved += values.nbytes - half.nbytes
    replace_all(graph.node, [*casts, *graph.node])
    return saved


def save(model: ModelProto, path: Path, *, external_data_bytes: int = EXTERNAL_DATA_BYTES) -> list[Path]:
    """Write the graph; weights above the limit go into ``NAME.onnx.data`` beside it.

    Returns:
        The files written.
    """
    weights = sum(tensor.ByteSize() for tensor in model.graph.initializer)  # some hold lists of numbers, not raw bytes
    if weights <= external_data_bytes:
        path.write_bytes(model.SerializeToString(deterministic=True))
        onnx.checker.check_model(path, full_check=True)  # checking the model in memory would copy it
        return [path]
    data = path.with_name(path.name + EXTERNAL_SUFFIX)
    onnx.save_model(model, path, save_as_external_data=True, location=data.name, size_threshold=1024)
    onnx.checker.check_model(path, full_check=True)
    return [path, data]


def _read_names(graph: GraphProto) -> set[str]:
    """Return the names of all values that nodes read, including branches of If and bodies of loops."""
    names = {name for node in graph.node for name in node.input if name}  # an omitted optional input is empty
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names |= _read_names(attribute.g) | {value.name for value in attribute.g.output}
    return names


def _producers(graph: GraphProto) -> dict[str, NodeProto]:
    return {name: node for node in graph.node for name in node.output}


def dims_of(value: ValueInfoProto) -> Dims | None:
    """Return the length of each axis, a name or None if it varies; None if the graph states no shape."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in kind.shape.dim]


def _computed_shape(
    node: NodeProto,
    producers: dict[str, NodeProto],
    dims: dict[str, Dims | None],
    constants: dict[str, TensorProto],
) -> list[int | str] | None:
    """Resolve a Concat of constants and single input dimensions; return None for anything else."""
    if node.op_type != "Concat":
        return None
    shape: list[int | str] = []
    for name in node.input:
        if name in constants:
            shape.extend(int(value) for value in numpy_helper.to_array(constants[name]))
            continue
        source = producers.get(name)
        if source is None or source.op_type != "Shape":
            return None
        known = dims.get(source.input[0])
        if known is None:
            return None
        for dim in known[_attribute(source, "start", 0) : _attribute(source, "end", len(known))]:
            if dim is None:
                return None
            shape.append(dim)
    return None if 0 in shape else shape


def _attribute(node: NodeProto, name: str, default: int) -> int:
    for attribute in node.attribute:
        if attribute.name == name:
            return int(attribute.i)
    return default
