"""The interface of every model: training, export and parity checks use it."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

MAX_LOGIT_SCALE: Final = 100.0


class TwoTowers(nn.Module):
    """An image tower and a text tower that end in one joint space; their vectors need not be of unit length."""

    visual: nn.Module
    text: nn.Module
    logit_scale: nn.Parameter
    """The scale's logarithm."""

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels, float ``[batch, 3, h, w]``, to ``[batch, dim]``."""
        out: Tensor = self.visual(pixels)
        return out

    def encode_text(self, ids: Tensor) -> Tensor:
        """Encode token ids, int64 ``[batch, length]``, to ``[batch, dim]``; some models need texts of full context."""
        out: Tensor = self.text(ids)
        return out

    @torch.no_grad()
    def clip_logit_scale(self) -> None:
        """Clip the scale to 100, after each step of a softmax loss (CLIP, section 2.5)."""
        self.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
