"""Export torch encoders to ONNX graphs, with the exporter of docs/adr/0004-onnx-exporter.md."""

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import onnx
import torch
from onnxscript import opset20 as op
from torch import Tensor, nn
from torch.export import Dim

from model_export.graphs.passes import optimize
from service.model.manifest import TextSection

OPSET: Final = 20
"""The first opset with `Gelu`. 23 would add `Attention`, which few providers support yet."""

PIXELS: Final = "pixels"
IDS: Final = "ids"
VECTORS: Final = "vectors"


def export_image_encoder(encoder: nn.Module, *, height: int, width: int) -> onnx.ModelProto:
    """Export uint8 ``[batch, height, width, 3]`` → float32 ``[batch, dim]``; only the batch is dynamic."""
    # The exporter may take an axis of length 1 for a constant, so use 2 examples.
    pixels = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    return _export(encoder, pixels, PIXELS, {0: Dim("batch")})


def export_text_encoder(encoder: nn.Module, section: TextSection) -> onnx.ModelProto:
    """Export int64 ids ``[batch, length]`` → float32 ``[batch, dim]``; the length is dynamic unless it is ``fixed``."""
    fixed = section.padding == "fixed"
    ids = torch.zeros(2, section.max_length if fixed else max(2, section.max_length - 1), dtype=torch.int64)
    batch = {0: Dim("batch")}
    if fixed:
        return _export(encoder, ids, IDS, batch)
    length = Dim("length", min=section.min_length, max=section.max_length)
    return _export(encoder, ids, IDS, {**batch, 1: length})


def _export(module: nn.Module, example: Tensor, name: str, shape: dict[int, Any]) -> onnx.ModelProto:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            (example,),
            input_names=[name],
            output_names=[VECTORS],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=(shape,),
            optimize=True,
            verbose=False,
            custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: _attention},
        )
    assert program is not None  # noqa: S101 - only the older exporter returns None
    model = program.model_proto
    optimize(model)
    return model


def _attention(  # noqa: PLR0917 - the signature is torch's
    query: Any,  # noqa: ANN401 - symbolic values of onnxscript, which has no types
    key: Any,  # noqa: ANN401
    value: Any,  # noqa: ANN401
    attn_mask: Any = None,  # noqa: ANN401
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002
    scale: float | None = None,
    enable_gqa: bool = False,  # noqa: FBT001, FBT002
) -> Any:  # noqa: ANN401
    """Translate scaled dot-product attention over ``[batch, heads, length, depth]``.

    The exporter's own translation transposes the keys through three dimensions and back, with four nodes of shape
    arithmetic in every layer. It also scales queries and keys; ONNX Runtime's tools recognise attention by one scale
    after the product, which the CPU provider fuses into the product anyway.
    """
    if dropout_p or is_causal or enable_gqa:
        raise NotImplementedError("attention with dropout, implied causality or grouped queries")
    if scale is None:
        scale = 1 / math.sqrt(query.shape[3])
    scores = op.MatMul(query, op.Transpose(key, perm=[0, 1, 3, 2]))
    scores = op.Mul(scores, op.Constant(value_float=scale))
    if attn_mask is not None and attn_mask.dtype == onnx.TensorProto.BOOL:
        scores = op.Where(attn_mask, scores, op.Constant(value_float=-math.inf))
    elif attn_mask is not None:
        scores = op.Add(scores, attn_mask)
    return op.MatMul(op.Softmax(scores, axis=-1), value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages, which concern its internals and not the model."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    # The attention fast path of torch's modules cannot be exported.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fast_path)
