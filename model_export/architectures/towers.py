"""The interface of every model: training, export and parity checks use it."""

from __future__ import annotations

from torch import Tensor, nn


class TwoTowers(nn.Module):
    """An image tower and a text tower that end in one joint space; their vectors need not be of unit length."""

    visual: nn.Module
    text: nn.Module

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels, float ``[batch, 3, h, w]``, to ``[batch, dim]``."""
        out: Tensor = self.visual(pixels)
        return out

    def encode_text(self, ids: Tensor) -> Tensor:
        """Encode token ids, int64 ``[batch, length]``, to ``[batch, dim]``; some models need texts of full context."""
        out: Tensor = self.text(ids)
        return out
