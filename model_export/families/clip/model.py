"""CLIP: an image tower and a text tower into one joint space (Radford et al. 2021)."""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import nn

from model_export.architectures.towers import TwoTowers
from model_export.families.clip.config import (
    ClipConfig,
    ModifiedResNetConfig,
    ResidualConvConfig,
    VisionTransformerConfig,
)
from model_export.families.clip.modified_resnet import ModifiedResNet
from model_export.families.clip.residual_conv import ResidualConv
from model_export.families.clip.text import TextTransformer
from model_export.families.clip.vit import VisionTransformer

INITIAL_LOGIT_SCALE = 1 / 0.07


class ClipModel(TwoTowers):
    """Two encoders and the learned logit scale.

    ``logit_scale`` is the scale's logarithm (paper, section 2.3). It starts at ln(1 / 0.07); training clips it
    so that the scale never exceeds 100.
    """

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = _image_tower(config)
        self.text = TextTransformer(config.text, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(INITIAL_LOGIT_SCALE)))


def _image_tower(config: ClipConfig) -> nn.Module:
    match config.image:
        case VisionTransformerConfig():
            return VisionTransformer(config.image, config.embed_dim)
        case ModifiedResNetConfig():
            return ModifiedResNet(config.image, config.embed_dim)
        case ResidualConvConfig():
            return ResidualConv(config.image, config.embed_dim)
        case _:  # pragma: no cover - the union above is closed
            assert_never(config.image)
