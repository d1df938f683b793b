"""Vision Transformer image tower (Dosovitskiy et al. 2020, as modified in CLIP, section 2.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_export.architectures.layers import ResidualAttentionBlock
from model_export.families.clip.config import VisionTransformerConfig


class VisionTransformer(nn.Module):
    """Patches and a class token through pre-norm blocks; the class token's output is projected linearly."""

    def __init__(self, config: VisionTransformerConfig, embed_dim: int) -> None:
        super().__init__()
        width = config.width
        scale = width**-0.5
        patches = (config.image_size // config.patch_size) ** 2
        self.conv1 = nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(patches + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        # The blocks keep PyTorch's initialisation: the reference scales only the text tower's.
        self.blocks = nn.ModuleList(
            ResidualAttentionBlock(width, config.heads, config.activation, mlp_width=config.mlp_width)
            for _ in range(config.layers)
        )
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels: float ``[batch, 3, size, size]`` to ``[batch, embed_dim]``."""
        *blocks, last = self.blocks
        x = self._embedded(pixels)
        for block in blocks:
            x = block(x)
        x = last(x, wanted=x[:, 0, None])  # [b, 1, width]
        out: Tensor = self.ln_post(x[:, 0]) @ self.proj
        return out

    def tokens(self, pixels: Tensor) -> Tensor:
        """Return all outputs before the projection, float ``[batch, 1 + patches, width]``, the class token first."""
        x = self._embedded(pixels)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.ln_post(x)
        return out

    def _embedded(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)  # [b, patches, width]
        first = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([first, x], dim=1) + self.positional_embedding.to(x.dtype)
        out: Tensor = self.ln_pre(x)
        return out
