"""A residual convolutional image tower for small pictures.

At 32x32 the ModifiedResNet's stem would leave a 1x1 feature map, and a ViT learns slowly from a hundred thousand
pictures. Few wide 3x3 convolutions with early pooling do well there (He et al. 2016; the CIFAR speed-run line
of networks). The stages are fully convolutional and the pool is global, so that the tower can be trained at
smaller sizes first.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_export.architectures.config import ResidualConvConfig


class ConvStage(nn.Module):
    """Halve the map and change the width with one convolution, then a residual pair at that width."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.conv3 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.act = nn.GELU()
        for conv in (self.conv1, self.conv2, self.conv3):
            # The first input channels pass through unchanged, so that signal and gradient reach every layer
            # from the first step on; the channels beyond keep the usual random start.
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        """Map float ``[batch, channels_in, h, w]`` to ``[batch, channels_out, h // 2, w // 2]``."""
        x = self.act(self.bn1(functional.max_pool2d(self.conv1(x), 2)))
        residual = self.act(self.bn2(self.conv2(x)))
        out: Tensor = self.act(self.bn3(self.conv3(residual))) + x
        return out


class ResidualConv(nn.Module):
    """Stem, stages, global max pool and a linear projection into the joint space."""

    def __init__(self, config: ResidualConvConfig, embed_dim: int) -> None:
        super().__init__()
        self.mirror = config.mirror
        self.conv1 = nn.Conv2d(3, config.stem_width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(config.stem_width)
        self.act = nn.GELU()
        widths = (config.stem_width, *config.widths)
        self.stages = nn.Sequential(*(ConvStage(a, b) for a, b in pairwise(widths)))
        self.proj = nn.Linear(widths[-1], embed_dim, bias=False)
        nn.init.normal_(self.proj.weight, std=widths[-1] ** -0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels: float ``[batch, 3, h, w]`` to ``[batch, embed_dim]``."""
        mirrored = self.mirror and not self.training
        if mirrored:
            # Side by side in the batch, so that each convolution runs once.
            pixels = torch.stack((pixels, pixels.flip(3)), dim=1).flatten(0, 1)  # [2 b, 3, h, w]
        x = self.act(self.bn1(self.conv1(pixels)))
        x = self.stages(x).amax(dim=(2, 3))
        if mirrored:
            x = x.reshape(-1, 2, self.proj.in_features).mean(dim=1)  # [b, width]
        out: Tensor = self.proj(x)
        return out
