"""Prepare a torch encoder for its export: merge branches, fold batch norms into convolutions, round weights to fp16.

All happen in torch, not in the graph, so the exported module is also the reference for the graph.
"""

import copy
from typing import Final

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from model_export.errors import ExportError

_MERGE: Final = "reparameterize"

MIN_ROUNDED: Final = 1024
"""Smaller parameters stay fp32: gains and biases are small in the file but matter for the result."""


def merge_branches(encoder: nn.Module) -> nn.Module:
    """Return a copy in which modules that train as parallel branches compute one convolution; itself if it has none.

    These are timm's modules with ``reparameterize``, such as MobileCLIP's, which are fast only so (MobileOne, section
    3.2, https://arxiv.org/abs/2206.04040).
    """
    if not any(hasattr(module, _MERGE) for module in encoder.modules()):
        return encoder.eval()
    encoder = copy.deepcopy(encoder).eval()
    for module in list(encoder.modules()):
        if hasattr(module, _MERGE):
            module.double()  # as in `_fold`
            getattr(module, _MERGE)()
            module.float()
    return encoder.eval()


def fold_batch_norm(encoder: nn.Module) -> nn.Module:
    """Return a copy with batch norms folded into the convolutions before them; the encoder itself if it has none.

    A max pool may stand between the two if every gain is positive: the maximum then commutes with the affine map. A
    batch norm without such a convolution stays.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules()):
        return encoder.eval()
    encoder = copy.deepcopy(encoder).eval()
    traced = fx.symbolic_trace(encoder)
    for node in list(traced.graph.nodes):
        norm = _module(traced, node)
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        source = node.args[0]
        pooled = _is_max_pool(traced, source)
        origin = source.args[0] if pooled else source
        conv = _module(traced, origin)
        if not isinstance(conv, nn.Conv2d) or not _only_use(traced, origin) or len(source.users) != 1:
            continue
        if pooled and not _gains_are_positive(norm):
            continue
        _fold(conv, norm)
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


@torch.no_grad()
def round_to_fp16(encoder: nn.Module) -> nn.Module:
    """Return a copy with large parameters rounded to values of fp16, still stored as float32.

    Raises:
        ExportError: a weight is beyond fp16's range.
    """
    encoder = copy.deepcopy(encoder)
    for name, parameter in encoder.named_parameters():
        if parameter.numel() < MIN_ROUNDED:
            continue
        rounded = parameter.to(torch.float16).to(torch.float32)
        if not rounded.isfinite().all():
            raise ExportError(f"{name}: holds values beyond fp16's range; export with --precision fp32")
        parameter.copy_(rounded)
    return encoder


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_max_pool(traced: fx.GraphModule, node: fx.Node) -> bool:
    return node.target is functional.max_pool2d or isinstance(_module(traced, node), nn.MaxPool2d)


def _only_use(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether the convolution is called only here, and its output read only once."""
    calls = sum(other.op == "call_module" and other.target == node.target for other in traced.graph.nodes)
    return calls == 1 and len(node.users) == 1


def _gains_are_positive(norm: nn.BatchNorm2d) -> bool:
    # Despite its annotation, this is None for a norm without affine parameters, whose gain is one.
    gain: nn.Parameter | None = norm.weight
    return gain is None or bool((gain > 0).all())


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    if norm.running_mean is None or norm.running_var is None:
        raise ExportError("a batch norm has no running statistics; export a model that was trained with them")
    # In float64, folding adds no rounding except the last one.
    conv.double()
    norm.double()
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    conv.float()
