"""SigLIP 2 NaFlex, `Siglip2Model` of transformers, as a SigLIP of one picture size, or with pictures of any aspect.

The published tower takes patches of pictures of any shape, and interpolates its position embeddings for each shape.
For square pictures with as many patches as it has positions nothing is interpolated: it is SigLIP's tower. So every
picture is resized to that square, unless the user asks for the published preprocessing, which keeps the aspect within
the same number of patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import PositiveInt, field_validator

from model_export.families import hugging_face
from model_export.families.family import HuggingFaceKind, HuggingFaceLayout
from model_export.families.hugging_face import Config, read_config
from model_export.families.key_tables import KeyTable
from model_export.families.siglip.config import SiglipConfig
from model_export.families.siglip.family import SIGLIP
from model_export.families.siglip.hugging_face import LAYER_NORM_EPS, ROWS, Text, Vision, configured
from model_export.families.tokenizers import TextTokens

if TYPE_CHECKING:
    from torch import Tensor

    from model_export.architectures.towers import TwoTowers

_PATCHES: Final = "vision_model.embeddings.patch_embedding.weight"

_GRID_NOTE: Final = (
    "pictures are resized to a square, a fixed grid of patches; the published preprocessing keeps their aspect"
)
"""How pictures are prepared unless they keep their aspect."""


class _Vision(Vision):
    num_patches: PositiveInt = 256

    @field_validator("num_patches")
    @classmethod
    def _is_square(cls, value: int) -> int:
        if math.isqrt(value) ** 2 != value:
            msg = f"{value} is not a square, so that no square picture has as many patches"
            raise ValueError(msg)
        return value

    @property
    def side(self) -> int:
        """Side of the square picture that has a patch for each position, pixels."""
        return math.isqrt(self.num_patches) * self.patch_size


class HfNaflex(Config):
    """The fields of a `Siglip2Model`'s ``config.json`` that decide a vector."""

    text_config: Text = Text()
    vision_config: _Vision = _Vision()


def _read(fields: Mapping[str, Any], path: Path) -> HfNaflex:
    return read_config(HfNaflex, fields, path, eps=LAYER_NORM_EPS)


def _configure(
    said: HfNaflex,
    config: Path,
    tokenizer: Path | None,
    as_published: bool,  # noqa: FBT001 - of a row's signature
) -> tuple[SiglipConfig, TextTokens]:
    ours, tokens = _configure_with_aspect(said, config, tokenizer, as_published)
    note = _GRID_NOTE if tokens.note is None else f"{tokens.note}; {_GRID_NOTE}"
    return ours, replace(tokens, note=note)


def _configure_with_aspect(
    said: HfNaflex,
    config: Path,
    tokenizer: Path | None,
    as_published: bool,  # noqa: FBT001 - of a row's signature
) -> tuple[SiglipConfig, TextTokens]:
    vision = said.vision_config
    return configured(said, vision, vision.side, config, tokenizer, as_published=as_published)


def _convert(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Rename weights; the patch embedding is a linear layer over pixels ``[row, column, colour]``."""
    given = dict(weights)
    width, colours, rows, columns = wanted["visual.conv1.weight"].shape
    patches = given.get(_PATCHES)
    if patches is not None and list(patches.shape) == [width, rows * columns * colours]:
        given[_PATCHES] = patches.reshape(width, rows, columns, colours).permute(0, 3, 1, 2).contiguous()
    return hugging_face.convert(KeyTable(ROWS), given, wanted, path)


NAFLEX: Final[HuggingFaceKind[SiglipConfig]] = HuggingFaceKind(
    name="siglip2",
    title="SigLIP 2 NaFlex",
    config=SiglipConfig,
    build=SIGLIP.build,
    padding=SIGLIP.padding,
    has_bias=SIGLIP.has_bias,
    images=replace(SIGLIP.images, processors=("Siglip2ImageProcessor",), size=None),
    hugging_face=HuggingFaceLayout(
        read=_read,
        image_size=lambda said: said.vision_config.side,
        configure=_configure,
        convert=_convert,
    ),
)


def _build(config: SiglipConfig) -> TwoTowers:
    from model_export.families.siglip.naflex_model import NaflexModel

    return NaflexModel(config)


NAFLEX_WITH_ASPECT: Final = replace(
    NAFLEX, build=_build, hugging_face=replace(NAFLEX.hugging_face, configure=_configure_with_aspect)
)
"""The same weights, for pictures that keep their aspect."""
