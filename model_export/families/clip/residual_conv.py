"""A residual convolutional image tower for small pictures.

At 32x32 the ModifiedResNet's stem would leave a 1x1 feature map, and a ViT learns slowly from a hundred thousand
pictures. A few wide 3x3 convolutions with early pooling do well at that size (He et al. 2016; the CIFAR speed-run line
of networks). The stages are fully convolutional and the pool is global, so the tower can be trained at smaller sizes
first.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_export.families.clip.config import WHITENED, ResidualConvConfig

_WHITENING_EPS = 5e-4


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
            # The first input channels pass through unchanged, so signal and gradient reach every layer from the first
            # step on; the other channels keep the usual random start.
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: Tensor) -> Tensor:
        """Map float ``[batch, channels_in, h, w]`` to ``[batch, channels_out, h // 2, w // 2]``."""
        x = self.act(self.bn1(functional.max_pool2d(self.conv1(x), 2)))
        residual = self.act(self.bn2(self.conv2(x)))
        out: Tensor = self.act(self.bn3(self.conv3(residual))) + x
        return out


class LearnedStem(nn.Module):
    """One 3x3 convolution with batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Map float ``[batch, 3, h, w]`` to ``[batch, width, h, w]``."""
        out: Tensor = self.act(self.bn1(self.conv1(x)))
        return out


class WhiteningStem(nn.Module):
    """Patches of 2x2 pixels in their principal directions, each of unit variance, beside their negatives.

    Neighbouring pixels of photos are nearly equal, so a learned first layer has one large direction and eleven tiny
    ones; whitened, all have the same weight from the first step on (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a
    single GPU", section 3.2). The kernel comes from pictures, by :meth:`whiten`, and is not trained; the bias is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WHITENED, 2)
        self.conv1.weight.requires_grad = False
        self.act = nn.GELU()
        nn.init.zeros_(self.conv1.bias)  # type: ignore[arg-type]

    @torch.no_grad()
    def whiten(self, pixels: Tensor) -> None:
        """Set the kernel from normalised pictures, float ``[batch, 3, h, w]``."""
        patches = functional.unfold(pixels.double(), 2).transpose(1, 2).flatten(0, 1)  # [patches, 3 * 2 * 2]
        values, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        whitened = (directions / (values + _WHITENING_EPS).sqrt()).T.reshape(-1, 3, 2, 2)
        self.conv1.weight.copy_(torch.cat((whitened, -whitened)))

    def forward(self, x: Tensor) -> Tensor:
        """Map float ``[batch, 3, h, w]`` to ``[batch, 24, h - 1, w - 1]``."""
        out: Tensor = self.act(self.conv1(x))
        return out


class StridedStem(nn.Module):
    """Patches of 4x4 pixels at every other pixel: one learned convolution with a bias.

    The kernel of a whitening stem for pictures of half the size becomes such a stem's by `enlarged_weights`.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 4, stride=2)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Map float ``[batch, 3, h, w]`` to ``[batch, width, h // 2 - 1, w // 2 - 1]``."""
        out: Tensor = self.act(self.conv1(x))
        return out


class ResidualConv(nn.Module):
    """Stem, stages, global max pool and a linear projection into the joint space."""

    def __init__(self, config: ResidualConvConfig, embed_dim: int) -> None:
        super().__init__()
        self.mirror = config.mirror
        self.shifts = config.shifts
        match config.stem:
            case "whitening":
                self.stem: nn.Module = WhiteningStem()
            case "strided":
                self.stem = StridedStem(config.stem_width)
            case "learned":
                self.stem = LearnedStem(config.stem_width)
        widths = (config.stem_width, *config.widths)
        self.stages = nn.Sequential(*(ConvStage(a, b) for a, b in pairwise(widths)))
        self.proj = nn.Linear(widths[-1], embed_dim, bias=False)
        nn.init.normal_(self.proj.weight, std=widths[-1] ** -0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode normalised pixels: float ``[batch, 3, h, w]`` to ``[batch, embed_dim]``."""
        views = [pixels] if self.training else self._views(pixels)
        # Views share a batch, so each convolution runs once.
        several = torch.stack(views, dim=1).flatten(0, 1) if len(views) > 1 else views[0]  # [views b, 3, h, w]
        x = self.stages(self.stem(several)).amax(dim=(2, 3))
        if len(views) > 1:
            x = x.reshape(-1, len(views), self.proj.in_features).mean(dim=1)  # [b, width]
        out: Tensor = self.proj(x)
        return out

    def _views(self, pixels: Tensor) -> list[Tensor]:
        views = [_moved(pixels, right, down) for right, down in self.shifts]
        return [*views, *(view.flip(3) for view in views)] if self.mirror else views


def enlarged_config(config: ResidualConvConfig) -> ResidualConvConfig | None:
    """Return the tower that sees pictures of twice the size at the same cost; None unless the stem is whitening."""
    if config.stem != "whitening":
        return None
    return config.model_copy(update={"image_size": 2 * config.image_size, "stem": "strided"})


def enlarged_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a whitening tower's weights as those of `enlarged_config`: each pixel of its kernel becomes 2x2 pixels.

    The new tower's vector of a picture is the old one's of the picture at half the size, each 2x2 pixels their mean.
    """
    name = "stem.conv1.weight"
    kernel = weights[name].repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    return {**weights, name: kernel}


def _moved(pixels: Tensor, right: int, down: int) -> Tensor:
    """Move a picture's content by whole pixels; reflection at the border fills the rest."""
    if right == down == 0:
        return pixels
    height, width = pixels.shape[2:]
    padded = functional.pad(pixels, (max(right, 0), max(-right, 0), max(down, 0), max(-down, 0)), mode="reflect")
    return padded[:, :, max(-down, 0) :, max(-right, 0) :][:, :, :height, :width]
