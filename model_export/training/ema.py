"""An exponential moving average of a model's weights (Polyak and Juditsky 1992; as in big_vision and timm)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from model_export.architectures.towers import TwoTowers
from model_export.training.sharding import own_part


class MovingAverage:
    """A copy of a model whose weights follow it; batch norms' statistics are averaged too, counters copied.

    The decay of step ``n``, from 0, is ``(1 + n) / (10 + n)``, and at most the given one: the random weights of the
    beginning are soon forgotten.

    Attributes:
        model: the copy, in evaluation mode.
    """

    def __init__(self, model: TwoTowers, decay: float) -> None:
        """Begin with the weights of ``model``, which must already be on its device."""
        self.model = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        self._decay = decay
        self.follow(model)

    def follow(self, model: TwoTowers) -> None:
        """Take the tensors of both models again, after these were divided among the ranks."""
        # Optimisers and batch norms write in place, so the model's tensors stay the same ones.
        pairs = [
            (own_part(own), own_part(other))
            for own, other in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True)
        ]
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the model's weights after a step."""
        decay = min(self._decay, (1 + step) / (10 + step))
        mine, theirs = zip(*self._averaged, strict=True)
        torch._foreach_lerp_(list(mine), list(theirs), 1 - decay)
        for own, other in self._copied:
            own.copy_(other)

    @torch.no_grad()
    def restart(self) -> None:
        """Take the model's present weights."""
        for own, other in (*self._averaged, *self._copied):
            own.copy_(other)

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return the averaged weights."""
        return dict(self.model.state_dict())
