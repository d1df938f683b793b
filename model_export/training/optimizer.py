"""The optimiser, with or without Muon for hidden matrices, and the learning-rate schedule (paper, section 2.5)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Optimizer:
    """AdamW without decay on gains and biases (paper, appendix F), and optionally Muon for the blocks' matrices.

    Muon (Jordan et al. 2024) makes each update orthogonal, so all directions of a matrix are learned at one rate. On
    small convolutional networks it needs fewer steps than AdamW. It applies to hidden matrices only: AdamW keeps
    stems, embeddings, projections, gains and biases. A kernel is treated as ``[out, in * height * width]``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        muon_lr: float | None = None,
    ) -> None:
        """Assign the parameters; ``model`` must already be on its device and in its memory format."""
        hidden = [p for p in _hidden_matrices(model) if p.requires_grad] if muon_lr is not None else []
        others = [p for p in model.parameters() if p.requires_grad and all(p is not kernel for kernel in hidden)]
        # The fused kernel takes either parameters that are divided among ranks, or whole ones.
        groups = [
            {
                "params": [p for p in others if (p.ndim > 1) is decays and isinstance(p, DTensor) is divided],
                "weight_decay": weight_decay if decays else 0.0,
            }
            for decays in (True, False)
            for divided in (False, True)
        ]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=lr,
            betas=betas,
            eps=eps,
            fused=True,  # one kernel for all parameters; on a CPU and a GPU
        )
        self.param_groups = [{"params": [*others, *hidden]}]
        """All parameters that are updated, as `torch.amp.GradScaler` looks for them."""
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        self._peaks: list[tuple[torch.optim.Optimizer, float]] = [(self._adamw, lr)]
        # Muon accepts matrices only, so these views share the memory of their kernels.
        self._matrices = [(p, nn.Parameter(_as_matrix(p.detach(), p))) for p in hidden]
        self._names |= {matrix: self._names[kernel] for kernel, matrix in self._matrices}
        if muon_lr is not None:
            matrices = [matrix for _, matrix in self._matrices]
            self._peaks.append((torch.optim.Muon(matrices, lr=muon_lr, weight_decay=weight_decay), muon_lr))

    def step(self, rate: float) -> None:
        """Update the parameters from their gradients, at ``rate`` times each one's peak learning rate."""
        for optimizer, peak in self._peaks:
            for group in optimizer.param_groups:
                group["lr"] = rate * peak
        for kernel, matrix in self._matrices:
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel.grad, kernel)
        for optimizer, _ in self._peaks:
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Return the state by ``OPTIMIZER/PARAMETER/KEY``."""
        return {
            f"{type(optimizer).__name__}/{self._names[parameter]}/{key}": value
            for optimizer, _ in self._peaks
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }

    def allocate(self, sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """Make the state of a run that is resumed, and return it to be filled.

        Args:
            sizes: by the names that :meth:`state` has.
        """
        for optimizer, _ in self._peaks:
            parameters = {self._names[p]: p for group in optimizer.param_groups for p in group["params"]}
            for full_name, size in sizes.items():
                kind, name, key = full_name.split("/")
                if kind != type(optimizer).__name__ or name not in parameters:
                    continue
                parameter = parameters[name]
                # A moment is divided and lies in memory as its parameter: the fused kernel goes over both alike.
                optimizer.state[parameter][key] = (
                    torch.zeros_like(parameter, requires_grad=False)
                    if size == parameter.shape
                    else torch.zeros(size, device=parameter.device)
                )
        return self.state()


def _hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of linear layers and convolutions in the towers' numbered blocks."""
    weights = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and any(part.isdigit() for part in name.split(".")):
            assert isinstance(module.weight, nn.Parameter)  # noqa: S101 - tells the type checker
            weights.append(module.weight)
    return weights


def _as_matrix(values: Tensor, kernel: nn.Parameter) -> Tensor:
    """Return a ``[out, rest]`` view, in the kernel's order in memory."""
    if values.ndim == 4 and kernel.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.flatten(1)


def learning_rate(step: int, *, total_steps: int, warmup_steps: int) -> float:
    """Return a step's rate as a share of the peak: linear warm-up to 1, then a cosine to zero at ``total_steps``."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))
