"""SigLIP's two towers (Zhai et al. 2023), as ``SiglipModel`` of transformers computes the published checkpoints."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model_export.architectures.layers import MLP, Attention, ResidualAttentionBlock
from model_export.architectures.towers import TwoTowers
from model_export.families.siglip.config import SiglipConfig, SiglipImageConfig, SiglipTextConfig

INITIAL_LOGIT_SCALE = 10.0
INITIAL_LOGIT_BIAS = -10.0


class SiglipModel(TwoTowers):
    """Two encoders, the learned logit scale's logarithm, and the learned logit bias.

    They start at ln 10 and -10 (paper, section 3.2): with one positive among many negatives, a model that rejects every
    pair is nearly right.
    """

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = SiglipImageTower(config)
        self.text = SiglipTextTower(config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(INITIAL_LOGIT_SCALE)))
        self.logit_bias = nn.Parameter(torch.tensor(INITIAL_LOGIT_BIAS))


class AttentionPool(nn.Module):
    """Attention over the patches with one learned query, the probe, then an MLP (Zhai et al. 2022)."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        width = config.image.width
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.attn = Attention(width, config.image.heads)
        self.ln = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = MLP(width, config.activation, mlp_width=config.image.mlp_width)
        nn.init.xavier_uniform_(self.probe)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool float ``[batch, patches, width]`` to ``[batch, width]``; the mask is added to the scores."""
        # The probe is not repeated for each picture: its query depends on no input, so runtimes fold it.
        pooled = self.attn(self.probe, mask, memory=x)[:, 0]
        out: Tensor = pooled + self.mlp(self.ln(pooled))
        return out


class SiglipImageTower(nn.Module):
    """Patches through pre-norm blocks, then the attention pool, without a projection."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        image = config.image
        self.conv1 = nn.Conv2d(3, image.width, image.patch_size, image.patch_size)
        self.positional_embedding = _positions(image.patches, image.width)
        self.blocks = _blocks(config, image)
        self.ln_post = nn.LayerNorm(image.width, eps=config.layer_norm_eps)
        self.pool = AttentionPool(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels: float ``[batch, 3, size, size]`` to ``[batch, width]``."""
        x = self.conv1(pixels).flatten(2).transpose(1, 2) + self.positional_embedding  # [b, patches, width]
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.pool(self.ln_post(x))
        return out


class SiglipTextTower(nn.Module):
    """Token ids through blocks that attend to the whole text; the last position's output is projected, with a bias."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        text = config.text
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = _positions(text.context_length, text.width)
        self.blocks = _blocks(config, text)
        self.ln_final = nn.LayerNorm(text.width, eps=config.layer_norm_eps)
        self.proj = nn.Linear(text.width, text.embed_dim)

    def forward(self, ids: Tensor) -> Tensor:
        """Encode texts.

        Args:
            ids: int64 ``[batch, context]``, padded to the context as in training. Padding is attended to like any
                token, so a trimmed text would get another vector.

        Returns:
            float ``[batch, embed_dim]``, not of unit length.

        Raises:
            ValueError: the texts are shorter or longer than the context.
        """
        context = self.positional_embedding.shape[0]
        if ids.shape[1] != context:
            msg = f"texts have {ids.shape[1]} tokens; SigLIP takes texts padded to its context of {context}"
            raise ValueError(msg)
        x = self.token_embedding(ids) + self.positional_embedding  # [b, context, width]
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        x = last(x, wanted=x[:, -1, None])  # [b, 1, width]
        out: Tensor = self.proj(self.ln_final(x)[:, 0])
        return out


def _positions(length: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(length, width) * width**-0.5)


def _blocks(config: SiglipConfig, tower: SiglipImageConfig | SiglipTextConfig) -> nn.ModuleList:
    return nn.ModuleList(
        ResidualAttentionBlock(
            tower.width,
            tower.heads,
            config.activation,
            mlp_width=tower.mlp_width,
            layer_norm_eps=config.layer_norm_eps,
        )
        for _ in range(tower.layers)
    )
