"""SigLIP 2's tower for pictures of any aspect, as ``Siglip2Model`` of transformers computes it."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from model_export.families.siglip.config import SiglipConfig
from model_export.families.siglip.model import SiglipImageTower, SiglipModel


class NaflexModel(SiglipModel):
    """SigLIP's towers, the image tower over a grid of patches; weights have SigLIP's names and shapes."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__(config)
        self.visual = NaflexImageTower(config)

    def encode_patches(self, patches: Tensor, grid: Tensor) -> Tensor:
        """Encode patches as :class:`NaflexImageTower` does."""
        out: Tensor = self.visual(patches, grid)
        return out


class NaflexImageTower(SiglipImageTower):
    """SigLIP's image tower; position embeddings are interpolated for each picture's grid, padding is masked."""

    def forward(self, patches: Tensor, grid: Tensor) -> Tensor:  # type: ignore[override]
        """Encode patches.

        Args:
            patches: normalised pixels, float ``[batch, 3, patches, pixels]``; those behind the grid's are padding.
            grid: rows and columns of each picture, float ``[batch, 2]``, at least 1.

        Returns:
            float ``[batch, width]``.
        """
        kernels = self.conv1.weight.flatten(1)  # [width, 3 * pixels]
        x = functional.linear(patches.transpose(1, 2).flatten(2), kernels, self.conv1.bias)  # [b, patches, width]
        rows, columns = grid[:, :1], grid[:, 1:]
        place = torch.arange(patches.shape[2], device=grid.device, dtype=grid.dtype)[None]
        # With a half no quotient is near a whole number, so that rounding cannot change its floor, in fp16 either.
        row = ((place + 0.5) / columns).floor()
        x = x + self._positions(torch.minimum(row, rows - 1), place - row * columns, rows, columns)
        padding = place >= rows * columns
        mask = torch.zeros_like(x[:, :, 0]).masked_fill(padding, -math.inf)[:, None, None]  # [b, 1, 1, patches]
        for block in self.blocks:
            x = block(x, mask)
        out: Tensor = self.pool(self.ln_post(x), mask)
        return out

    def _positions(self, row: Tensor, column: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Interpolate the square of position embeddings at each patch: bilinear, antialiased.

        Both axes are linear maps, which differ from picture to picture. As one product of matrices they need no
        operator that resizes, which no batch of several sizes could have.
        """
        side = math.isqrt(self.positional_embedding.shape[0])
        down, across = _shares(row, rows, side), _shares(column, columns, side)
        both = (down[..., :, None] * across[..., None, :]).flatten(2)  # [b, patches, side * side]
        return both @ self.positional_embedding


def _shares(index: Tensor, count: Tensor, side: int) -> Tensor:
    """Return the weights of ``side`` embeddings along an axis at given places of ``count``.

    Args:
        index: of the place, float ``[batch, patches]``.
        count: of places, float ``[batch, 1]``.

    Returns:
        float ``[batch, patches, side]``, of sum 1: a triangle around the place's centre, as wide as the step between
        places where that is more than one embedding.
    """
    step = side / count
    centre = (index + 0.5) * step
    embeddings = torch.arange(side, device=index.device, dtype=index.dtype) + 0.5
    distance = (embeddings - centre[..., None]).abs() / step.clamp(min=1)[..., None]
    shares = (1 - distance).relu()
    return shares / shares.sum(dim=-1, keepdim=True)
