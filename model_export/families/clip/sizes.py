"""CLIP's named sizes. A further size is a further entry, and nothing else.

Sources: names and shapes as OpenAI and open_clip (``model_configs``) write them. ImageNet zero-shot top-1: of OpenAI's
nine, Radford et al. 2021, table 11; of the others, open_clip's ``docs/openclip_results.csv`` (the LAION-2B weights, of
ViT-g-14 those of 34 billion samples).

An entry states the activation of those published weights. Other weights of the same shape may use another one:
open_clip's own ViT-B-32 uses GELU where OpenAI's uses QuickGELU.
"""

from __future__ import annotations

from typing import Final

from model_export.architectures.activations import Activation
from model_export.families.clip.config import (
    ClipConfig,
    ImageTowerConfig,
    ModifiedResNetConfig,
    TextTransformerConfig,
    VisionTransformerConfig,
)
from model_export.families.family import NamedSize


def _resnet(
    embed_dim: int, layers: tuple[int, int, int, int], width: int, text: TextTransformerConfig, *, size: int = 224
) -> ClipConfig:
    return ClipConfig(
        embed_dim=embed_dim, image=ModifiedResNetConfig(image_size=size, layers=layers, width=width), text=text
    )


def _clip(embed_dim: int, image: ImageTowerConfig, text: TextTransformerConfig) -> ClipConfig:
    return ClipConfig(embed_dim=embed_dim, image=image, text=text)


def _vit(
    patch_size: int,
    width: int,
    layers: int,
    heads: int,
    activation: Activation = "quick_gelu",
    *,
    size: int = 224,
    mlp_width: int | None = None,
) -> VisionTransformerConfig:
    return VisionTransformerConfig(
        image_size=size,
        patch_size=patch_size,
        width=width,
        layers=layers,
        heads=heads,
        activation=activation,
        mlp_width=mlp_width,
    )


def _text(width: int, layers: int, heads: int, activation: Activation = "quick_gelu") -> TextTransformerConfig:
    return TextTransformerConfig(width=width, layers=layers, heads=heads, activation=activation)


_TEXT_SMALL: Final = _text(512, 12, 8)
_TEXT_MEDIUM: Final = _text(768, 12, 12)
_TEXT_LARGE: Final = _text(1024, 24, 16, "gelu")

CLIP_SIZES: Final = (
    NamedSize(
        name="RN50",
        config=_resnet(1024, (3, 4, 6, 3), 64, _TEXT_SMALL),
        parameters=102_007_137,
        imagenet_top1=59.6,
        aliases=("RN50-quickgelu",),
    ),
    NamedSize(
        name="RN101",
        config=_resnet(512, (3, 4, 23, 3), 64, _TEXT_SMALL),
        parameters=119_688_033,
        imagenet_top1=62.3,
        aliases=("RN101-quickgelu",),
    ),
    NamedSize(
        name="RN50x4",
        config=_resnet(640, (4, 6, 10, 6), 80, _text(640, 12, 10), size=288),
        parameters=178_300_601,
        imagenet_top1=66.3,
        aliases=("RN50x4-quickgelu",),
    ),
    NamedSize(
        name="RN50x16",
        config=_resnet(768, (6, 8, 18, 8), 96, _TEXT_MEDIUM, size=384),
        parameters=290_979_217,
        imagenet_top1=70.7,
        aliases=("RN50x16-quickgelu",),
    ),
    NamedSize(
        name="RN50x64",
        config=_resnet(1024, (3, 15, 36, 10), 128, _text(1024, 12, 16), size=448),
        parameters=623_258_305,
        imagenet_top1=73.9,
        aliases=("RN50x64-quickgelu",),
    ),
    NamedSize(
        name="ViT-B-32",
        config=_clip(512, _vit(32, 768, 12, 12), _TEXT_SMALL),
        parameters=151_277_313,
        imagenet_top1=63.2,
        aliases=("ViT-B-32-quickgelu", "openai/clip-vit-base-patch32"),
    ),
    NamedSize(
        name="ViT-B-16",
        config=_clip(512, _vit(16, 768, 12, 12), _TEXT_SMALL),
        parameters=149_620_737,
        imagenet_top1=68.6,
        aliases=("ViT-B-16-quickgelu", "openai/clip-vit-base-patch16"),
    ),
    NamedSize(
        name="ViT-L-14",
        config=_clip(768, _vit(14, 1024, 24, 16), _TEXT_MEDIUM),
        parameters=427_616_513,
        imagenet_top1=75.3,
        aliases=("ViT-L-14-quickgelu", "openai/clip-vit-large-patch14"),
    ),
    NamedSize(
        name="ViT-L-14-336",
        config=_clip(768, _vit(14, 1024, 24, 16, size=336), _TEXT_MEDIUM),
        parameters=427_944_193,
        imagenet_top1=76.2,
        aliases=("ViT-L-14-336-quickgelu", "openai/clip-vit-large-patch14-336"),
    ),
    NamedSize(
        name="ViT-H-14",
        config=_clip(1024, _vit(14, 1280, 32, 16, "gelu"), _TEXT_LARGE),
        parameters=986_109_441,
        imagenet_top1=77.96,
        aliases=("laion/CLIP-ViT-H-14-laion2B-s32B-b79K",),
    ),
    NamedSize(
        name="ViT-g-14",
        config=_clip(1024, _vit(14, 1408, 40, 16, "gelu", mlp_width=6144), _TEXT_LARGE),
        parameters=1_366_678_273,
        imagenet_top1=78.47,
        aliases=("laion/CLIP-ViT-g-14-laion2B-s34B-b88K",),
    ),
    NamedSize(
        name="ViT-bigG-14",
        config=_clip(1280, _vit(14, 1664, 48, 16, "gelu", mlp_width=8192), _text(1280, 32, 20, "gelu")),
        parameters=2_539_567_105,
        imagenet_top1=80.09,
        aliases=("ViT-G-14", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"),
    ),
)
"""The nine of the paper, and open_clip's."""
