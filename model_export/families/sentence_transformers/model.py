"""DistilBERT with pooling and a dense layer, as transformers and sentence-transformers compute it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from model_export.architectures.layers import MLP, Attention
from model_export.architectures.towers import TwoTowers
from model_export.families.key_tables import KeyTable, Rows
from model_export.families.sentence_transformers.config import LAYER_NORM_EPS, SentenceTextConfig


class SentenceModel(TwoTowers):
    """The image tower and the scale of another model, and a text tower that was trained onto its vectors."""

    def __init__(self, image_model: TwoTowers, text: SentenceTextTower) -> None:
        super().__init__()
        self.visual = image_model.visual
        self.text = text
        self.logit_scale = image_model.logit_scale


class SentenceTextTower(nn.Module):
    """Token ids through a post-norm transformer; tokens are pooled without padding, which the ids alone tell."""

    def __init__(self, config: SentenceTextConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.randn(config.positions, config.width) * 0.02)
        self.ln = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.proj = nn.Linear(config.width, config.embed_dim, bias=config.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """Encode int64 ``[batch, length]`` to float ``[batch, embed_dim]``; how a text is padded changes nothing."""
        x = self.ln(self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]])  # [b, l, width]
        tokens = ids.ne(self.config.pad_id)  # [b, l]
        mask = torch.zeros_like(tokens, dtype=x.dtype).masked_fill(~tokens, -math.inf)[:, None, None]  # [b, 1, 1, l]
        for block in self.blocks:
            x = block(x, mask)
        if self.config.pooling == "first":
            pooled = x[:, 0]
        else:
            weight = tokens.to(x.dtype)[:, :, None]  # [b, l, 1]
            pooled = (x * weight).sum(dim=1) / weight.sum(dim=1)  # [b, width]
        out: Tensor = self.proj(pooled)
        return out


class _Block(nn.Module):
    """Post-norm transformer block."""

    def __init__(self, config: SentenceTextConfig) -> None:
        super().__init__()
        self.attn = Attention(config.width, config.heads)
        self.ln_1 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)
        self.mlp = MLP(config.width, "gelu", mlp_width=config.mlp_width)
        self.ln_2 = nn.LayerNorm(config.width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Transform float ``[batch, length, width]``."""
        x = self.ln_1(x + self.attn(x, mask))
        out: Tensor = self.ln_2(x + self.mlp(x))
        return out


_ROWS: Final[Rows] = {
    "embeddings.word_embeddings.weight": ("token_embedding.weight",),
    "embeddings.position_embeddings.weight": ("positional_embedding",),
    "embeddings.LayerNorm.*": ("ln.*",),
    "transformer.layer.#.attention.q_lin.*": ("blocks.#.attn.q_proj.*",),
    "transformer.layer.#.attention.k_lin.*": ("blocks.#.attn.k_proj.*",),
    "transformer.layer.#.attention.v_lin.*": ("blocks.#.attn.v_proj.*",),
    "transformer.layer.#.attention.out_lin.*": ("blocks.#.attn.out_proj.*",),
    "transformer.layer.#.sa_layer_norm.*": ("blocks.#.ln_1.*",),
    "transformer.layer.#.ffn.lin1.*": ("blocks.#.mlp.c_fc.*",),
    "transformer.layer.#.ffn.lin2.*": ("blocks.#.mlp.c_proj.*",),
    "transformer.layer.#.output_layer_norm.*": ("blocks.#.ln_2.*",),
}
_DENSE: Final[Rows] = {"linear.*": ("proj.*",)}
_OWN: Final = "proj."


def converted(
    text: tuple[Mapping[str, Tensor], Path], dense: tuple[Mapping[str, Tensor], Path], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Rename the weights of the text model and of the dense layer, each with its file; as `KeyTable.convert`."""
    own = {name: tensor for name, tensor in wanted.items() if name.startswith(_OWN)}
    rest = {name: tensor for name, tensor in wanted.items() if not name.startswith(_OWN)}
    return {**KeyTable(_ROWS).convert(text[0], rest, text[1]), **KeyTable(_DENSE).convert(dense[0], own, dense[1])}
