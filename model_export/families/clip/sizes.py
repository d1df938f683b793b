"""CLIP's named sizes. A further size is a further row, and nothing else.

Sources: names and shapes as OpenAI and open_clip (``model_configs``) write them. ImageNet zero-shot top-1: of OpenAI's
nine, Radford et al. 2021, table 11; of the others, open_clip's ``docs/openclip_results.csv`` (the LAION-2B weights, of
ViT-g-14 those of 34 billion samples).

A row states the activation of those published weights. Other weights of the same shape may use another one:
open_clip's own ViT-B-32 uses GELU where OpenAI's uses QuickGELU.
"""

from __future__ import annotations

from typing import Final

from model_export.architectures.activations import Activation
from model_export.families.clip.config import (
    ClipConfig,
    ModifiedResNetConfig,
    TextTransformerConfig,
    VisionTransformerConfig,
)
from model_export.families.clip.operations import clip_operations
from model_export.families.family import NamedSize


def _size(  # noqa: PLR0917 - a row of a table
    name: str,
    embed_dim: int,
    image: VisionTransformerConfig | ModifiedResNetConfig,
    text: TextTransformerConfig,
    parameters: int,
    imagenet_top1: float,
    *aliases: str,
) -> NamedSize:
    config = ClipConfig(embed_dim=embed_dim, image=image, text=text)
    return NamedSize(name, config, clip_operations(embed_dim, image, text), parameters, imagenet_top1, aliases)


def _openai(  # noqa: PLR0917 - a row of a table
    name: str,
    embed_dim: int,
    image: VisionTransformerConfig | ModifiedResNetConfig,
    text: TextTransformerConfig,
    parameters: int,
    imagenet_top1: float,
    *hub_names: str,
) -> NamedSize:
    """Return a size of the paper. open_clip has it under two names, and OpenAI's account on the hub has some."""
    aliases = (f"{name}-quickgelu", *(f"openai/{each}" for each in hub_names))
    return _size(name, embed_dim, image, text, parameters, imagenet_top1, *aliases)


def _resnet(layers: tuple[int, int, int, int], width: int, size: int = 224) -> ModifiedResNetConfig:
    return ModifiedResNetConfig(image_size=size, layers=layers, width=width)


def _vit(  # noqa: PLR0917 - the order in which papers write a shape
    patch_size: int,
    width: int,
    layers: int,
    heads: int,
    activation: Activation = "quick_gelu",
    mlp_width: int | None = None,
    *,
    size: int = 224,
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


_SMALL: Final = _text(512, 12, 8)
_MEDIUM: Final = _text(768, 12, 12)
_LARGE: Final = _text(1024, 24, 16, "gelu")
_HUGE: Final = _text(1280, 32, 20, "gelu")
_L_336: Final = _vit(14, 1024, 24, 16, size=336)
_H: Final = _vit(14, 1280, 32, 16, "gelu")
_G: Final = _vit(14, 1408, 40, 16, "gelu", 6144)
_BIG_G: Final = _vit(14, 1664, 48, 16, "gelu", 8192)

CLIP_SIZES: Final = (
    # Name, joint space, image tower, text tower, parameters, top-1, names on the hub or elsewhere.
    _openai("RN50", 1024, _resnet((3, 4, 6, 3), 64), _SMALL, 102_007_137, 59.6),
    _openai("RN101", 512, _resnet((3, 4, 23, 3), 64), _SMALL, 119_688_033, 62.3),
    _openai("RN50x4", 640, _resnet((4, 6, 10, 6), 80, 288), _text(640, 12, 10), 178_300_601, 66.3),
    _openai("RN50x16", 768, _resnet((6, 8, 18, 8), 96, 384), _MEDIUM, 290_979_217, 70.7),
    _openai("RN50x64", 1024, _resnet((3, 15, 36, 10), 128, 448), _text(1024, 12, 16), 623_258_305, 73.9),
    _openai("ViT-B-32", 512, _vit(32, 768, 12, 12), _SMALL, 151_277_313, 63.2, "clip-vit-base-patch32"),
    _openai("ViT-B-16", 512, _vit(16, 768, 12, 12), _SMALL, 149_620_737, 68.6, "clip-vit-base-patch16"),
    _openai("ViT-L-14", 768, _vit(14, 1024, 24, 16), _MEDIUM, 427_616_513, 75.3, "clip-vit-large-patch14"),
    _openai("ViT-L-14-336", 768, _L_336, _MEDIUM, 427_944_193, 76.2, "clip-vit-large-patch14-336"),
    _size("ViT-H-14", 1024, _H, _LARGE, 986_109_441, 77.96, "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
    _size("ViT-g-14", 1024, _G, _LARGE, 1_366_678_273, 78.47, "laion/CLIP-ViT-g-14-laion2B-s34B-b88K"),
    _size(
        "ViT-bigG-14", 1280, _BIG_G, _HUGE, 2_539_567_105, 80.09, "ViT-G-14", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"
    ),
)
"""The nine of the paper, and open_clip's."""
