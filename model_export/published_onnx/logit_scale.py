"""Reads a model's logit scale and bias from its full graph: the operations between the cosines and the logits.

A configuration's ``logit_scale_init_value`` is the start of training, not the trained model's scale. The graph that
ends in ``logits_per_image`` has that: walking back from there to the product of the two embeddings, each constant that
multiplies or adds belongs to the scale or the bias.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from model_export.errors import SourceError
from model_export.published_onnx.graph_files import read_graph

LOGITS: Final = ("logits_per_image", "logits_per_text")
"""One is the other's transpose; the first that a graph has is read."""

_PASSES: Final = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Operators that leave the numbers as they are."""

_PRODUCTS: Final = frozenset({"Einsum", "FusedMatMul", "Gemm", "MatMul"})

_FUNCTIONS: Final[Mapping[str, Callable[[float], float]]] = {
    "Exp": np.exp,
    "Neg": np.negative,
    "Reciprocal": np.reciprocal,
    **dict.fromkeys(_PASSES | {"Expand"}, float),
}
"""Operators through which a constant is followed, with their effect on it."""


@dataclass(frozen=True)
class Scale:
    """Logits are ``scale`` · cosine + ``bias``, the scale already exponentiated; CLIP's have no bias."""

    scale: float
    bias: float | None


def read_scale(path: Path) -> Scale:
    """Read the scale and the bias from a graph that ends in logits.

    Raises:
        SourceError: the graph cannot be read, has no logits, or computes them in an unknown way.
    """
    graph = read_graph(path).graph
    outputs = {value.name for value in graph.output}
    logits = next((name for name in LOGITS if name in outputs), None)
    if logits is None:
        raise SourceError(f"{path}: has no output {LOGITS[0]}, so its logit scale is unknown")
    walk = _Walk(graph)
    node = walk.back(logits)
    if node is None or node.op_type not in _PRODUCTS:
        found = node.op_type if node is not None else "an input"
        raise SourceError(f"{path}: {logits} comes from {found}, not from a product of embeddings")
    if (alpha := _alpha(node)) is not None:
        walk.multiply(alpha)
    for name in node.input[:2]:  # the scale may also stand on one of the embeddings
        walk.back(name, sums=False)
    if not walk.found:
        raise SourceError(f"{path}: multiplies the cosines with no constant before {logits}")
    return Scale(walk.scale, walk.bias)


class _Walk:
    """Walks from an output towards the inputs, and collects the scale and bias it passes."""

    def __init__(self, graph: GraphProto) -> None:
        self.scale = 1.0
        self.bias: float | None = None
        self.found = False
        self._producers: dict[str, NodeProto] = {name: node for node in graph.node for name in node.output}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}

    def back(self, name: str, *, sums: bool = True) -> NodeProto | None:
        """Go back to the first node that does more than pass a value on, or add or multiply a constant."""
        while (node := self._producers.get(name)) is not None:
            if node.op_type in _PASSES and node.input:
                name = node.input[0]
                continue
            if node.op_type not in {"Mul", "Div", *(("Add", "Sub") if sums else ())} or len(node.input) != 2:
                return node
            left, right = (self._constant(each) for each in node.input)
            if left is None and right is not None:
                name = node.input[0]
                self._apply(node.op_type, right)
            elif left is not None and node.op_type in {"Mul", "Add"}:
                name = node.input[1]
                self._apply(node.op_type, left)
            else:
                return node
        return None

    def _apply(self, operator: str, value: float) -> None:
        # Operators passed before apply after this one: a bias found behind a factor is multiplied by it.
        if operator in {"Add", "Sub"}:
            self.bias = (self.bias or 0.0) + self.scale * (value if operator == "Add" else -value)
            return
        self.multiply(value if operator == "Mul" else 1 / value if value else float("nan"))

    def multiply(self, factor: float) -> None:
        """Multiply the scale by a factor."""
        self.scale *= factor
        self.found = True

    def _constant(self, name: str) -> float | None:
        """Compute a number that depends on no input; None for any other value."""
        tensor = self._tensors.get(name)
        node = self._producers.get(name)
        if tensor is None and node is not None and node.op_type == "Constant" and node.attribute:
            tensor = _constant_tensor(node.attribute[0])
        if tensor is not None:
            return _number(tensor)
        if node is None or node.op_type not in _FUNCTIONS or not node.input:
            return None
        value = self._constant(node.input[0])
        with np.errstate(all="ignore"):  # infinity and NaN are refused later
            return None if value is None else float(_FUNCTIONS[node.op_type](value))


def _number(tensor: TensorProto) -> float | None:
    if int(np.prod(tensor.dims)) != 1 or tensor.data_location == TensorProto.EXTERNAL:
        return None
    return float(numpy_helper.to_array(tensor).astype(np.float64).item())


def _constant_tensor(attribute: AttributeProto) -> TensorProto | None:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return value
    return numpy_helper.from_array(np.asarray(value)) if isinstance(value, int | float) else None


def _alpha(node: NodeProto) -> float | None:
    """Return the factor that some products have as an attribute."""
    return next((attribute.f for attribute in node.attribute if attribute.name == "alpha"), None)
