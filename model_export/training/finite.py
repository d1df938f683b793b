"""Watches the loss on its device: reading it at each step would make the device wait."""

from __future__ import annotations

import torch
from torch import Tensor

from model_export.errors import TrainingError


class FiniteWatch:
    """Remembers the first step whose loss is not finite."""

    def __init__(self, device: torch.device) -> None:
        self._step = torch.full((), -1, dtype=torch.int64, device=device)
        self._value = torch.zeros((), device=device)

    def note(self, step: int, loss: Tensor) -> None:
        """Look at the loss of a step, without waiting for it."""
        first = ~torch.isfinite(loss) & (self._step < 0)
        self._step.masked_fill_(first, step)
        self._value = torch.where(first, loss.float(), self._value)

    def check(self) -> None:
        """Wait for the device, and raise if a loss was not finite.

        Raises:
            TrainingError: the message names the step and the remedies.
        """
        step = int(self._step)
        if step >= 0:
            msg = (
                f"the loss became {self._value.item()} at step {step + 1}; the last checkpoint is kept. "
                "Lower optim.lr, lengthen optim.warmup_steps, set optim.clip_grad_norm, or try precision = 'fp32'"
            )
            raise TrainingError(msg)
