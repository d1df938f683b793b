"""SigLIP's named sizes. A further size is a further entry, and nothing else.

Sources: names and shapes as open_clip (``model_configs``) and big_vision write them. ImageNet zero-shot top-1:
open_clip's ``docs/openclip_results.csv``, of the WebLI weights.
"""

from __future__ import annotations

from typing import Final

from model_export.families.family import NamedSize
from model_export.families.siglip.config import SiglipConfig, SiglipImageConfig, SiglipTextConfig


def _siglip(  # noqa: PLR0917 - the order in which papers write a shape
    size: int, patch_size: int, width: int, layers: int, heads: int, mlp_width: int, *, context_length: int = 64
) -> SiglipConfig:
    """Both towers of a SigLIP have the same shape."""
    shape = {"width": width, "layers": layers, "heads": heads, "mlp_width": mlp_width}
    return SiglipConfig(
        image=SiglipImageConfig(image_size=size, patch_size=patch_size, **shape),
        text=SiglipTextConfig(context_length=context_length, embed_dim=width, **shape),
    )


_SO400M: Final = (14, 1152, 27, 16, 4304)

SIGLIP_SIZES: Final = (
    NamedSize(
        name="ViT-B-16-SigLIP",
        config=_siglip(224, 16, 768, 12, 12, 3072),
        parameters=203_155_970,
        imagenet_top1=76.04,
        aliases=("ViT-B-16-SigLIP-224", "google/siglip-base-patch16-224"),
    ),
    NamedSize(
        name="ViT-B-16-SigLIP-256",
        config=_siglip(256, 16, 768, 12, 12, 3072),
        parameters=203_202_050,
        imagenet_top1=76.53,
        aliases=("google/siglip-base-patch16-256",),
    ),
    NamedSize(
        name="ViT-B-16-SigLIP-384",
        config=_siglip(384, 16, 768, 12, 12, 3072),
        parameters=203_447_810,
        imagenet_top1=78.49,
        aliases=("google/siglip-base-patch16-384",),
    ),
    NamedSize(
        name="ViT-B-16-SigLIP-512",
        config=_siglip(512, 16, 768, 12, 12, 3072),
        parameters=203_791_874,
        imagenet_top1=79.14,
        aliases=("google/siglip-base-patch16-512",),
    ),
    NamedSize(
        name="ViT-L-16-SigLIP-256",
        config=_siglip(256, 16, 1024, 24, 16, 4096),
        parameters=652_150_786,
        imagenet_top1=80.45,
        aliases=("google/siglip-large-patch16-256",),
    ),
    NamedSize(
        name="ViT-L-16-SigLIP-384",
        config=_siglip(384, 16, 1024, 24, 16, 4096),
        parameters=652_478_466,
        imagenet_top1=82.07,
        aliases=("google/siglip-large-patch16-384",),
    ),
    NamedSize(
        name="ViT-SO400M-14-SigLIP",
        # Its context is a quarter of the others'.
        config=_siglip(224, *_SO400M, context_length=16),
        parameters=877_360_306,
        imagenet_top1=82.03,
        aliases=("ViT-SO400M-14-SigLIP-224", "google/siglip-so400m-patch14-224"),
    ),
    NamedSize(
        name="ViT-SO400M-14-SigLIP-384",
        config=_siglip(384, *_SO400M),
        parameters=877_960_498,
        imagenet_top1=83.08,
        aliases=("google/siglip-so400m-patch14-384",),
    ),
)
