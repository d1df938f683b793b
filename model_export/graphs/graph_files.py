"""Writing one graph of a bundle, and what is worth saying of it."""

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
    """What is worth saying of one graph that was written."""

    file: str
    nodes: int
    weights: int
    bytes: int
    seconds: float


class Listener(Protocol):
    """Hears of a bundle as it is made."""

    def wrote(self, graph: Graph) -> None:
        """A graph was written."""

    def measured(self, report: Report) -> None:
        """The graphs were compared with their reference, well or not."""


def write_graph(model: ModelProto, path: Path, *, started: float) -> Graph:
    """Write a graph, with its weights beside it where they are large.

    Args:
        model: the graph.
        path: where to.
        started: `time.monotonic()` when the work on it began.
    """
    weights = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    nodes = len(model.graph.node)
    written = sum(file.stat().st_size for file in save(model, path))
    return Graph(path.name, nodes, weights, written, time.monotonic() - started)
