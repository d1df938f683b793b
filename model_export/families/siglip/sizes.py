"""SigLIP's named sizes. A further size is a further row, and nothing else.

Sources: names and shapes as open_clip (``model_configs``) and big_vision write them. ImageNet zero-shot top-1:
open_clip's ``docs/openclip_results.csv``, of the WebLI weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from model_export.families.family import NamedSize
from model_export.families.siglip.config import SiglipConfig, SiglipImageConfig, SiglipTextConfig
from model_export.families.siglip.operations import siglip_operations

SHAPES: Final[Mapping[str, Mapping[str, int]]] = {
    "base": {"width": 768, "layers": 12, "heads": 12, "mlp_width": 3072},
    "large": {"width": 1024, "layers": 24, "heads": 16, "mlp_width": 4096},
    "so400m": {"width": 1152, "layers": 27, "heads": 16, "mlp_width": 4304},
    "giantopt": {"width": 1536, "layers": 40, "heads": 16, "mlp_width": 6144},
}
"""The towers of SigLIP, by the word in their timm name."""


def _size(  # noqa: PLR0917 - a row of a table
    name: str,
    image_size: int,
    patch_size: int,
    shape: str,
    parameters: int,
    imagenet_top1: float,
    *aliases: str,
    context_length: int = 64,
) -> NamedSize:
    """Return a size whose towers have the same shape."""
    config = SiglipConfig(
        image=SiglipImageConfig(image_size=image_size, patch_size=patch_size, **SHAPES[shape]),
        text=SiglipTextConfig(context_length=context_length, embed_dim=SHAPES[shape]["width"], **SHAPES[shape]),
    )
    return NamedSize(name, config, siglip_operations(config), parameters, imagenet_top1, aliases)


SIGLIP_SIZES: Final = (
    # Name, picture, patch, shape, parameters, top-1, other names.
    _size(
        "ViT-B-16-SigLIP", 224, 16, "base", 203_155_970, 76.04, "ViT-B-16-SigLIP-224", "google/siglip-base-patch16-224"
    ),
    _size("ViT-B-16-SigLIP-256", 256, 16, "base", 203_202_050, 76.53, "google/siglip-base-patch16-256"),
    _size("ViT-B-16-SigLIP-384", 384, 16, "base", 203_447_810, 78.49, "google/siglip-base-patch16-384"),
    _size("ViT-B-16-SigLIP-512", 512, 16, "base", 203_791_874, 79.14, "google/siglip-base-patch16-512"),
    _size("ViT-L-16-SigLIP-256", 256, 16, "large", 652_150_786, 80.45, "google/siglip-large-patch16-256"),
    _size("ViT-L-16-SigLIP-384", 384, 16, "large", 652_478_466, 82.07, "google/siglip-large-patch16-384"),
    _size(
        "ViT-SO400M-14-SigLIP",
        *(224, 14, "so400m", 877_360_306, 82.03),
        *("ViT-SO400M-14-SigLIP-224", "google/siglip-so400m-patch14-224"),
        context_length=16,  # a quarter of the others'
    ),
    _size("ViT-SO400M-14-SigLIP-384", 384, 14, "so400m", 877_960_498, 83.08, "google/siglip-so400m-patch14-384"),
)
