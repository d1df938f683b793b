"""Building blocks of towers: attention with separate projections, and the pre-norm block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from model_export.architectures.activations import LAYER_NORM_EPS, Activation
from model_export.architectures.attention import attend


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``: the activation of OpenAI's checkpoints, close to but not the same as GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation element by element; the shape and dtype stay."""
        return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "quick_gelu": QuickGELU,
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
}


def activation(name: Activation) -> nn.Module:
    """Return the activation module that a configuration names."""
    return _ACTIVATIONS[name]()


class Attention(nn.Module):
    """Multi-head attention whose q, k and v are three projections.

    One fused projection would be as fast in torch, but the ONNX runtimes only recognise and fuse the exported graph if
    the three are apart.

    Attributes:
        own_gradients: in training on a CPU, compute the gradients by :func:`attend`, which is faster.
    """

    own_gradients = False

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

    def forward(self, x: Tensor, mask: Tensor | None = None, *, memory: Tensor | None = None) -> Tensor:
        """Attend over a sequence: over ``x`` itself, or over ``memory``.

        Args:
            x: queries, float ``[batch, length, width]``; with ``memory`` it may be ``[1, length, width]``, the same for
                the whole batch.
            mask: float, added to the scores and broadcast to them, ``[batch, heads, length, memory_length]``.
            memory: keys and values, float ``[batch, memory_length, width]``.

        Returns:
            float ``[batch, length, width]``.
        """
        memory = x if memory is None else memory
        q, k, v = self._split(self.q_proj(x)), self._split(self.k_proj(memory)), self._split(self.v_proj(memory))
        own = self.own_gradients and torch.is_grad_enabled() and q.device.type == "cpu" and len(q) == len(k)
        attention = attend if own else functional.scaled_dot_product_attention
        out = attention(q, k, v, mask)  # [b, heads, length, depth]
        joined: Tensor = self.out_proj(out.transpose(1, 2).reshape(memory.shape[0], x.shape[1], x.shape[2]))
        return joined

    def _split(self, projected: Tensor) -> Tensor:
        """Turn ``[batch, length, width]`` into ``[batch, heads, length, depth]``."""
        batch, length, width = projected.shape
        return projected.view(batch, length, self.heads, width // self.heads).transpose(1, 2)


class MLP(nn.Module):
    """Two linear layers with ``mlp_width`` channels between them, by default four times the width."""

    def __init__(self, width: int, act: Activation, *, mlp_width: int | None = None) -> None:
        super().__init__()
        hidden = 4 * width if mlp_width is None else mlp_width
        self.c_fc = nn.Linear(width, hidden)
        self.act = activation(act)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map float ``[batch, length, width]`` to the same shape."""
        out: Tensor = self.c_proj(self.act(self.c_fc(x)))
        return out


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block: attention, then an MLP.

    Attributes:
        recomputes: in training, keep the input only, and compute the block again in the backward pass.
    """

    recomputes = False

    def __init__(
        self,
        width: int,
        heads: int,
        act: Activation,
        *,
        mlp_width: int | None = None,
        layer_norm_eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=layer_norm_eps)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=layer_norm_eps)
        self.mlp = MLP(width, act, mlp_width=mlp_width)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, wanted: Tensor | None = None) -> Tensor:
        """Transform a sequence, or only the wanted positions.

        Args:
            x: float ``[batch, length, width]``.
            mask: as in :class:`Attention`.
            wanted: float ``[batch, positions, width]``, some rows of ``x``. The others are only attended to: in a last
                block whose output is read at one position this saves most of the work.

        Returns:
            Float of the shape of ``wanted`` if given, else of ``x``.
        """
        if self.recomputes and torch.is_grad_enabled():
            again: Tensor = checkpoint(self._transform, x, mask, wanted, use_reentrant=False)
            return again
        return self._transform(x, mask, wanted)

    def _transform(self, x: Tensor, mask: Tensor | None, wanted: Tensor | None) -> Tensor:
        if wanted is None:
            x = x + self.attn(self.ln_1(x), mask)
        else:
            x = wanted + self.attn(self.ln_1(wanted), mask, memory=self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out
