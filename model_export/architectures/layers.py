"""Building blocks that both towers share: attention with separate projections, and the pre-norm block."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["quick_gelu", "gelu"]


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``: the activation of OpenAI's checkpoints, close to but not the same as GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation element by element; the shape and dtype stay."""
        return x * torch.sigmoid(1.702 * x)


def activation(name: Activation) -> nn.Module:
    """Return the activation module that a configuration names."""
    return QuickGELU() if name == "quick_gelu" else nn.GELU()


class Attention(nn.Module):
    """Multi-head self-attention whose q, k and v are three projections.

    One fused projection would be as fast in torch, but the exported graph is only recognised and fused by the
    ONNX runtimes when the three are apart.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            msg = f"width {width} is not a multiple of {heads} heads"
            raise ValueError(msg)
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as ``nn.MultiheadAttention`` does: Xavier over the *joint* q-k-v matrix, zero biases."""
        width = self.q_proj.in_features
        bound = (6 / (width + 3 * width)) ** 0.5
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.uniform_(projection.weight, -bound, bound)
            nn.init.zeros_(projection.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend over the sequence.

        Args:
            x: float ``[batch, length, width]``.
            mask: float ``[length, length]`` that is added to the scores, or none.

        Returns:
            float ``[batch, length, width]``.
        """
        batch, length, width = x.shape

        def split(projected: Tensor) -> Tensor:
            return projected.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))  # [b, heads, l, d]
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        joined: Tensor = self.out_proj(out.transpose(1, 2).reshape(batch, length, width))
        return joined


class MLP(nn.Module):
    """Two linear layers with four times the width between them."""

    def __init__(self, width: int, act: Activation) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.act = activation(act)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map float ``[batch, length, width]`` to the same shape."""
        out: Tensor = self.c_proj(self.act(self.c_fc(x)))
        return out


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block: attention, then an MLP of four times the width."""

    def __init__(self, width: int, heads: int, act: Activation) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, act)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map float ``[batch, length, width]`` to the same shape; ``mask`` as in :class:`Attention`."""
        x = x + self.attn(self.ln_1(x), mask)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out
