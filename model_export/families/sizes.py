"""The sizes that have a name: one entry each. A new one is a new entry, and nothing else.

Sources: names and shapes as OpenAI, open_clip (``model_configs``) and big_vision write them. ImageNet zero-shot top-1:
for OpenAI's nine, Radford et al. 2021, table 11; for the others, open_clip's ``docs/openclip_results.csv`` (the
LAION-2B weights, of ViT-g-14 those of 34 billion samples; the WebLI weights of SigLIP).

An entry states the activation of those published weights. Others of the same shape may use another one: open_clip's
own ViT-B-32, for one, uses GELU where OpenAI's uses QuickGELU.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from model_export.architectures.activations import Activation
from model_export.errors import SourceError
from model_export.families.clip.config import (
    ClipConfig,
    ImageTowerConfig,
    ModifiedResNetConfig,
    TextTransformerConfig,
    VisionTransformerConfig,
)
from model_export.families.siglip.config import SiglipConfig, SiglipImageConfig, SiglipTextConfig


@dataclass(frozen=True)
class NamedSize:
    """A published size.

    Attributes:
        name: as open_clip writes it.
        config: both towers and the joint space.
        parameters: as published; buffers are not counted.
        imagenet_top1: ImageNet zero-shot accuracy of the published weights, per cent; none where it is not known.
        aliases: other names that `named_size` takes, such as a hub id; ``ViT-B/32`` and the like need none.
    """

    name: str
    config: ClipConfig | SiglipConfig
    parameters: int
    imagenet_top1: float | None
    aliases: tuple[str, ...] = ()

    @property
    def embed_dim(self) -> int:
        """Dimensions of the joint space."""
        return self.config.embed_dim

    @property
    def image_size(self) -> int:
        """Side of the square picture that the image tower takes, pixels."""
        return self.config.image.image_size

    @property
    def context_length(self) -> int:
        """Tokens of the longest text."""
        return self.config.text.context_length


def named_size(name: str) -> NamedSize:
    """Find a size by its name or an alias; ``ViT-L-14-336``, ``ViT-L/14@336px`` and ``vit-l-14-336`` are the same.

    Raises:
        SourceError: no size has the name, or several have it but for capitals (ViT-g/14 and ViT-G/14 are two).
    """
    key = _key(name)
    found = _SPELLINGS.get(key) or _SPELLINGS_FOLDED.get(key.casefold(), ())
    if len(found) == 1:
        return SIZES[found[0]]
    near = found or _near(key)
    suggestion = f"did you mean {' or '.join(near)}? " if near else ""
    raise SourceError(f"{name!r} names no size; {suggestion}`anyclass-export list` shows every one")


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


def _siglip(  # noqa: PLR0917 - the order in which papers write a shape
    size: int, patch_size: int, width: int, layers: int, heads: int, mlp_width: int, *, context_length: int = 64
) -> SiglipConfig:
    """Both towers of a SigLIP have the same shape."""
    shape = {"width": width, "layers": layers, "heads": heads, "mlp_width": mlp_width}
    return SiglipConfig(
        image=SiglipImageConfig(image_size=size, patch_size=patch_size, **shape),
        text=SiglipTextConfig(context_length=context_length, embed_dim=width, **shape),
    )


_TEXT_SMALL: Final = _text(512, 12, 8)
_TEXT_MEDIUM: Final = _text(768, 12, 12)
_TEXT_LARGE: Final = _text(1024, 24, 16, "gelu")
_SO400M: Final = (14, 1152, 27, 16, 4304)

_ENTRIES: Final = (
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

SIZES: Final[Mapping[str, NamedSize]] = MappingProxyType({size.name: size for size in _ENTRIES})
"""By name: the nine of the paper, open_clip's, SigLIP's."""


def _key(name: str) -> str:
    key = name.strip()
    for separator in "/@_ ":
        key = key.replace(separator, "-")
    return key.removesuffix("px")


def _spellings() -> Iterator[tuple[str, str]]:
    for size in SIZES.values():
        for spelling in (size.name, *size.aliases):
            yield _key(spelling), size.name


def _grouped(pairs: Iterator[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, tuple[str, ...]] = {}
    for key, name in pairs:
        groups[key] = tuple(dict.fromkeys((*groups.get(key, ()), name)))
    return groups


_SPELLINGS: Final = _grouped(_spellings())
_SPELLINGS_FOLDED: Final = _grouped((key.casefold(), name) for key, name in _spellings())


def _near(key: str) -> tuple[str, ...]:
    close = difflib.get_close_matches(key.casefold(), _SPELLINGS_FOLDED, n=3, cutoff=0.6)
    return tuple(dict.fromkeys(name for match in close for name in _SPELLINGS_FOLDED[match]))
