"""Divide the weights of large towers among the ranks (FSDP2, `torch.distributed.fsdp.fully_shard`).

Each rank keeps its part of every parameter, gradient, moment and average; a block is put together while it is computed.
The logit scale and bias, scalars outside the towers, stay whole on each rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from model_export.architectures.layers import ResidualAttentionBlock
from model_export.architectures.towers import TwoTowers
from model_export.training.ranks import Ranks


def divide(model: TwoTowers, ranks: Ranks) -> None:
    """Divide both towers among the ranks in place, block by block, and move them to the device.

    Names of parameters stay; they become `DTensor`. The weights must be equal on all ranks.
    """
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for tower in (model.visual, model.text):
        for module in tower.modules():
            if isinstance(module, ResidualAttentionBlock):
                fully_shard(module, mesh=mesh)
        # By default the parameters outside of blocks would stay whole after a pass without gradients, and the next
        # one would not see what the optimiser has changed.
        fully_shard(tower, mesh=mesh, reshard_after_forward=True)
    model.to(ranks.device)


def own_part(tensor: Tensor) -> Tensor:
    """Return a rank's part of a tensor that is divided, in the same memory; a whole tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the parameters that are not divided, whose gradients the ranks have to average."""
    return [parameter for parameter in parameters if not isinstance(parameter, DTensor)]


def gathered(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Return whole tensors in the CPU's memory, of the first rank only; to be called on all if any are divided."""
    found = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if ranks.leads:
            found[name] = full.detach().cpu().contiguous()
    return found


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients down to a norm over all of them, divided or not; return the norm before, on the device."""
    with_gradients = [p for p in parameters if p.grad is not None]
    divided = [p for p in with_gradients if isinstance(p, DTensor)]
    if not divided:
        return nn.utils.clip_grad_norm_(with_gradients, max_norm)
    others = whole(with_gradients)
    of_divided = nn.utils.get_total_norm([p.grad for p in divided if p.grad is not None])
    assert isinstance(of_divided, DTensor)  # noqa: S101 - tells the type checker
    norm = torch.hypot(
        of_divided.full_tensor(), nn.utils.get_total_norm([p.grad for p in others if p.grad is not None])
    )
    for group in (divided, others):
        nn.utils.clip_grads_with_norm_(group, max_norm, norm)
    return norm
