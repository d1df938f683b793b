"""Reads published graphs with their weights, never from outside their folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its stubs are another package
from onnx import GraphProto, ModelProto, NodeProto, TensorProto
from onnx.external_data_helper import uses_external_data
from onnx.inliner import inline_local_functions

from model_export.errors import SourceError
from model_export.graphs.passes import replace_all

MIN_OPSET: Final = 11
"""Older graphs have other rules for axes, and none is published."""

OWN_DOMAINS: Final = frozenset({"", "ai.onnx"})


def read_graph(path: Path) -> ModelProto:
    """Read a graph without the weights in files beside it, and sort its nodes in the order of computation.

    Raises:
        SourceError: the file is missing, not a graph, or of an older opset than any published.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError as exc:
        raise SourceError(f"{path}: is missing; download it again") from exc
    except OSError as exc:
        raise SourceError(f"{path}: cannot be read ({exc.strerror})") from exc
    except DecodeError as exc:
        raise SourceError(f"{path}: is not an ONNX graph; is the download complete?") from exc
    if not model.graph.node:
        raise SourceError(f"{path}: is not an ONNX graph; is the download complete?")
    opset = default_opset(model)
    if opset < MIN_OPSET:
        raise SourceError(f"{path}: is of opset {opset}; export it again with {MIN_OPSET} or later")
    if model.functions:
        model = inline_local_functions(model)
    _sort(model.graph, path)
    return model


def read_weights(path: Path) -> ModelProto:
    """Read a graph with all its weights, from a folder that `plain_copy` wrote.

    Raises:
        SourceError: the graph or its weights cannot be read.
    """
    model = read_graph(path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as exc:
        raise SourceError(f"{path}: the weights beside it cannot be read ({one_line(exc)})") from exc
    return model


def data_files(model: ModelProto, path: Path) -> list[Path]:
    """Name the files beside ``path`` that hold weights of its graph.

    Raises:
        SourceError: a file is missing, or outside the graph's folder.
    """
    locations = {
        entry.value
        for graph in nested(model.graph)
        for tensor in tensors(graph)
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for location in sorted(locations):
        pure = PurePosixPath(location)
        if "\\" in location or pure.is_absolute() or ".." in pure.parts:
            raise SourceError(f"{path}: refers to weights in {location!r}, outside its folder")
        if not (path.parent / pure).is_file():
            raise SourceError(f"{path.parent / pure}: is missing, and {path.name} keeps its weights in it")
    return [path.parent / location for location in sorted(locations)]


def plain_copy(path: Path, files: list[Path], folder: Path) -> Path:
    """Return a path where a graph and its data files lie side by side as plain files.

    A hub's cache is a folder of symbolic links, and neither onnx nor ONNX Runtime follows one to weights.

    Args:
        files: its data files; without any, the graph stays where it is.
        folder: an empty folder to copy to.
    """
    if not files:
        return path
    for file in (path, *files):
        copy = folder / file.relative_to(path.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    return folder / path.name


def one_line(exc: Exception) -> str:
    """Return a library's message, of any number of lines, on one."""
    return " ".join(str(exc).split())


def default_opset(model: ModelProto) -> int:
    """Return the version of ONNX's own operators that a graph is written in."""
    return max((opset.version for opset in model.opset_import if opset.domain in OWN_DOMAINS), default=0)


def nested(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and every graph inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from nested(inner)


def _sort(graph: GraphProto, path: Path) -> None:
    """Put each node behind those it reads from; the format demands it, but converters to fp16 forget it."""
    known = {"", *(item.name for item in (*graph.input, *graph.initializer))}
    known.update(sparse.values.name for sparse in graph.sparse_initializer)
    pending, done = list(graph.node), []
    while pending:
        waiting = []
        for node in pending:
            if _reads(node) <= known:
                known.update(node.output)
                done.append(node)
            else:
                waiting.append(node)
        if len(waiting) == len(pending):
            raise SourceError(f"{path}: is not a sound ONNX graph: nothing computes what {waiting[0].op_type} reads")
        pending = waiting
    replace_all(graph.node, done)


def _reads(node: NodeProto) -> set[str]:
    """Name the values that a node reads, and the outer values that the graphs inside it read."""
    names = set(node.input)
    for attribute in node.attribute:
        for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
            own = {item.name for item in (*inner.input, *inner.initializer)}
            own.update(name for each in inner.node for name in each.output)
            read = {value.name for value in inner.output}.union(*(_reads(each) for each in inner.node))
            names |= read - own
    return names


def tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Yield the constants of one graph: initializers, and attributes of nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
