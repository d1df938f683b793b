"""Write one graph of a bundle, and report its size."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from onnx import ModelProto

from model_export.bundles.verification import Report
from model_export.graphs.passes import save


@dataclass(frozen=True)
class Graph:
    """Size of a written graph, and the time it took."""

    file: str
    nodes: int
    weights: int
    bytes: int
    seconds: float


class Listener(Protocol):
    """Receives the steps of making a bundle."""

    def wrote(self, graph: Graph) -> None:
        """Receive a graph that was written."""

    def measured(self, report: Report) -> None:
        """Receive the comparison of the graphs with their reference, passed or failed."""


def write_graph(model: ModelProto, path: Path, *, started: float) -> Graph:
    """Write a graph, with large weights in a file beside it.

    Args:
        started: `time.monotonic()` at the start of the work on it.
    """
    weights = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    nodes = len(model.graph.node)
    written = sum(file.stat().st_size for file in save(model, path))
    return Graph(path.name, nodes, weights, written, time.monotonic() - started)
