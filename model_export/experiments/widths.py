"""Widen or narrow both towers of a model."""

from __future__ import annotations

from typing import assert_never

from model_export.families.clip.config import (
    ClipConfig,
    ImageTowerConfig,
    ModifiedResNetConfig,
    ResidualConvConfig,
    VisionTransformerConfig,
)


def scaled(config: ClipConfig, factor: float) -> ClipConfig:
    """Return a configuration whose towers have ``factor`` times the channels, rounded to a whole number a head.

    The stem of a `residual_conv` and the joint space keep theirs.
    """
    if factor == 1:
        return config
    text = config.text
    width = _rounded(text.width, factor, text.heads)
    image = _scaled_image(config.image, factor)
    return config.model_copy(update={"image": image, "text": text.model_copy(update={"width": width})})


def _scaled_image(image: ImageTowerConfig, factor: float) -> ImageTowerConfig:
    match image:
        case ResidualConvConfig():
            return image.model_copy(update={"widths": tuple(_rounded(width, factor, 1) for width in image.widths)})
        case VisionTransformerConfig():
            return image.model_copy(update={"width": _rounded(image.width, factor, image.heads)})
        case ModifiedResNetConfig():
            return image.model_copy(update={"width": _rounded(image.width, factor, 2)})
        case _:  # pragma: no cover - the union is closed
            assert_never(image)


def _rounded(width: int, factor: float, parts: int) -> int:
    return parts * max(1, round(width * factor / parts))
