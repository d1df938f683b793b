"""A small transformer decoder that predicts captions from the features of an image tower."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_export.architectures.layers import MLP, Attention
from model_export.experiments.recipe import DecoderSection

_TOKEN_STD = 0.02
_POSITION_STD = 0.01
"""Of new embeddings, as in CLIP's text tower."""


class _DecoderBlock(nn.Module):
    """Pre-norm: causal self-attention, cross-attention, MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.ln_3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn, self.cross = (Attention(width, heads) for _ in range(2))
        self.attn.own_gradients = self.cross.own_gradients = True
        self.mlp = MLP(width, "gelu")

    def read(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend within captions, float ``[captions, length, width]``."""
        out: Tensor = x + self.attn(self.ln_1(x), mask)
        return out

    def look(self, x: Tensor, memory: Tensor) -> Tensor:
        """Attend to features, ``[pictures, positions, width]``, from tokens, ``[pictures, tokens, width]``."""
        x = x + self.cross(self.ln_2(x), memory=memory)
        out: Tensor = x + self.mlp(self.ln_3(x))
        return out


class CaptionDecoder(nn.Module):
    """A small transformer decoder over the image tower's features; the output shares the token embeddings."""

    mask: Tensor

    def __init__(self, section: DecoderSection, features: int, vocabulary: int, context_length: int) -> None:
        super().__init__()
        width = section.width
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(_POSITION_STD * torch.randn(context_length, width))
        self.memory = nn.Linear(features, width)
        self.ln_memory, self.ln_final = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_DecoderBlock(width, section.heads) for _ in range(section.layers))
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        nn.init.normal_(self.tokens.weight, std=_TOKEN_STD)
        above = torch.full((context_length, context_length), float("-inf")).triu(1)
        self.register_buffer("mask", above, persistent=False)

    def forward(self, features: Tensor, ids: Tensor) -> Tensor:
        """Return the logits of the token after each, float ``[pictures, length, vocabulary]``, a caption a picture."""
        x, mask = self._embedded(ids)
        memory = self.ln_memory(self.memory(features))
        for block in self._blocks():
            x = block.look(block.read(x, mask), memory)
        return self._logits(x)

    def of_all(self, features: Tensor, ids: Tensor, places: Tensor) -> Tensor:
        """Return logits of every caption for every picture, float ``[pictures, places, vocabulary]``.

        Args:
            features: of the pictures.
            ids: of the captions, int64 ``[captions, length]``.
            places: of the tokens whose successor is wanted, within all ``captions * length``, int64 ``[places]``.
        """
        x, mask = self._embedded(ids)
        memory = self.ln_memory(self.memory(features))
        *blocks, last = self._blocks()
        for block in blocks:
            x = self._for_each(block.read(x, mask), ids, len(memory))
            x = block.look(x, memory).reshape(-1, ids.shape[1], x.shape[2])
        x = self._for_each(last.read(x, mask), ids, len(memory))
        return self._logits(last.look(x[:, places], memory))

    def _blocks(self) -> list[_DecoderBlock]:
        return [block for block in self.blocks if isinstance(block, _DecoderBlock)]

    @staticmethod
    def _for_each(x: Tensor, ids: Tensor, pictures: int) -> Tensor:
        """Return ``[pictures, captions * length, width]``; before the first look all pictures share the captions."""
        if len(x) == len(ids):
            return x.flatten(0, 1).expand(pictures, -1, -1)
        return x.reshape(pictures, -1, x.shape[2])

    def _embedded(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        length = ids.shape[1]
        return self.tokens(ids) + self.positions[:length], self.mask[:length, :length]

    def _logits(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.ln_final(x), self.tokens.weight, self.bias)
