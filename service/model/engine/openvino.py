"""Runs a graph on OpenVINO, behind the methods that we use of an ONNX Runtime session.

This uses OpenVINO itself and not its plugin for ONNX Runtime: the plugin accepts Intel's CPUs only, contains the same
library (to the byte), and computes either the whole graph with it or none of it (docs/adr/0010-providers.md).
"""

import sys
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_TYPES: Final = {"u8": "tensor(uint8)", "i64": "tensor(int64)", "f32": "tensor(float)", "f16": "tensor(float16)"}
"""Maps OpenVINO element types to ONNX Runtime's names, for the inputs and outputs we use."""


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph; a dimension of variable size is None."""

    name: str
    type: str
    shape: list[int | str | None]


class OpenVinoSession:
    """A compiled graph; any number of threads may run it at the same time."""

    def __init__(self, model: Path | bytes, options: Mapping[str, str]) -> None:
        """Read and compile a graph. Raises ImportError if OpenVINO is not installed; its own errors pass through."""
        core = _core()
        source = model if isinstance(model, bytes) else str(model)
        graph = core.read_model(source)
        _keep_pooling_before_activations(graph)
        self._compiled = core.compile_model(graph, "CPU", dict(options))
        # A request computes one batch at a time and holds its memory, so each concurrent run has its own.
        self._idle: deque[Any] = deque()

    def get_inputs(self) -> list[Port]:
        """Describe the graph's inputs."""
        return [_port(node) for node in self._compiled.inputs]

    def get_outputs(self) -> list[Port]:
        """Describe the graph's outputs."""
        return [_port(node) for node in self._compiled.outputs]

    def run(self, output_names: None, input_feed: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:  # noqa: ARG002 - all outputs, as `onnxruntime` has it
        """Compute every output."""
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        feed = {name: np.ascontiguousarray(array) for name, array in input_feed.items()}
        # Inputs are not copied; outputs are, because the next run would overwrite them.
        results = request.infer(feed, share_inputs=True, share_outputs=False)
        outputs = [results[node] for node in self._compiled.outputs]
        self._idle.append(request)  # not after an error, which leaves the request in an unknown state
        return outputs


def _keep_pooling_before_activations(graph: Any) -> None:  # noqa: ANN401 - openvino.Model
    """Keep OpenVINO from computing an activation before the maximum that a graph takes first.

    OpenVINO joins a convolution with the activation behind the `MaxPool` that follows it. That changes the result if
    the activation is not monotone, and GELU and Swish are not. A maximum with the least number changes no result and
    is in the way. Seen with 2026.4.1 and the demo model: cosine 0.9889 to ONNX Runtime, 1.0000 with the maximum.
    """
    maximum, constant = (getattr(import_module("openvino.opset13"), name) for name in ("maximum", "constant"))
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MaxPool" or not node.output(0).get_element_type().is_real():
            continue
        pooled = node.output(0)
        followers = list(pooled.get_target_inputs())
        least = np.finfo(pooled.get_element_type().to_dtype()).min
        kept = maximum(pooled, constant(least, pooled.get_element_type())).output(0)
        for follower in followers:
            follower.replace_source_output(kept)


@cache
def _core() -> Any:  # noqa: ANN401 - openvino.Core, imported late because most never need it
    # If this package can be imported, `import openvino` sends a report over the network and leaves files in the home
    # directory, unasked. If it cannot, OpenVINO uses a stub of its own, which does nothing.
    modules: dict[str, Any] = sys.modules
    modules["openvino_telemetry"] = None
    return import_module("openvino").Core()


def _port(node: Any) -> Port:  # noqa: ANN401 - openvino.ConstOutput
    name = node.get_element_type().get_type_name()
    sizes = [size.get_length() if size.is_static else None for size in node.get_partial_shape()]
    return Port(node.get_any_name(), _TYPES.get(name, name), sizes)
