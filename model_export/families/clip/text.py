"""Causal text transformer (CLIP, section 2.4; initialisation as in the reference implementation)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_export.architectures.layers import ResidualAttentionBlock
from model_export.families.clip.config import TextTransformerConfig


class TextTransformer(nn.Module):
    """Encodes a text as the final LayerNorm's output at its first end-of-text token, projected."""

    causal_mask: Tensor

    def __init__(self, config: TextTransformerConfig, embed_dim: int) -> None:
        super().__init__()
        self.end_of_text_id = config.end_of_text_id
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.blocks = nn.ModuleList(
            ResidualAttentionBlock(config.width, config.heads, config.activation, mlp_width=config.mlp_width)
            for _ in range(config.layers)
        )
        self.ln_final = nn.LayerNorm(config.width)
        self.text_projection = nn.Parameter(torch.empty(config.width, embed_dim))
        mask = torch.full((config.context_length, config.context_length), float("-inf")).triu(1)
        self.register_buffer("causal_mask", mask, persistent=False)
        self._initialise(config)

    def _initialise(self, config: TextTransformerConfig) -> None:
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=config.width**-0.5)
        residual_std = config.width**-0.5 * (2 * config.layers) ** -0.5
        for block in self.blocks:
            assert isinstance(block, ResidualAttentionBlock)  # noqa: S101 - tells the type checker
            for projection in (block.attn.q_proj, block.attn.k_proj, block.attn.v_proj):
                nn.init.normal_(projection.weight, std=config.width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * config.width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=residual_std)

    def forward(self, ids: Tensor) -> Tensor:
        """Encode texts.

        Args:
            ids: int64 ``[batch, length]``, ``length`` at most the context. Every row holds an end-of-text id; later
                ids change nothing, because attention is causal.

        Returns:
            float ``[batch, embed_dim]``, not of unit length.
        """
        length = ids.shape[1]
        x = self.token_embedding(ids) + self.positional_embedding[:length]  # [b, l, width]
        mask = self.causal_mask[:length, :length].to(x.dtype)[None, None]  # [1, 1, l, l]
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, mask)
        # int32: several ONNX providers refuse ArgMax over int64 or booleans.
        end = (ids == self.end_of_text_id).to(torch.int32).argmax(dim=1)
        picked = x[torch.arange(x.shape[0], device=x.device), end]  # [b, width]
        seen = mask.index_select(2, end).transpose(0, 2)  # [b, 1, 1, l]
        picked = last(x, seen, wanted=picked[:, None])  # [b, 1, width]
        out: Tensor = self.ln_final(picked[:, 0]) @ self.text_projection
        return out
