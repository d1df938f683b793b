"""Start from a model at another image size: its position embeddings are interpolated as open_clip does."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from model_export.checkpoints.model_source import ModelSource
from model_export.errors import RecipeError
from model_export.families.clip.config import ClipConfig, VisionTransformerConfig
from model_export.families.siglip.config import SiglipConfig, SiglipImageConfig


def at_image_size(source: ModelSource, size: int, name: str) -> ModelSource:
    """Return a model for pictures of another size; its other weights are shared with the source.

    Args:
        source: a model whose image tower is a vision transformer; any other is returned as it is.
        size: side of a picture in pixels.
        name: of the source, for messages.

    Raises:
        RecipeError: the size is no multiple of the tower's patches.
    """
    config = source.config
    if size == config.image.image_size or not isinstance(config, ClipConfig | SiglipConfig):
        return source
    image = config.image
    if isinstance(image, VisionTransformerConfig) and size % image.patch_size:
        below, patch = size - size % image.patch_size, image.patch_size
        msg = (
            f"{name}: has patches of {patch} pixels, of which image_size {size} is no multiple; "
            f"{max(below, patch)} and {below + patch} are"
        )
        raise RecipeError(msg)
    if not isinstance(image, VisionTransformerConfig | SiglipImageConfig):
        return source
    tower, patch = source.model.visual, image.patch_size
    assert isinstance(tower.positional_embedding, Tensor)  # noqa: S101 - tells the type checker
    tower.positional_embedding = nn.Parameter(
        resize_positions(tower.positional_embedding, image.image_size // patch, size // patch), requires_grad=False
    )
    return replace(
        source,
        config=config.model_copy(update={"image": image.model_copy(update={"image_size": size})}),
        image=source.image.model_copy(update={"height": size, "width": size}),
    )


@torch.no_grad()
def resize_positions(embedding: Tensor, side: int, new_side: int) -> Tensor:
    """Interpolate the position embeddings of a square grid of patches: bicubic, antialiased, as open_clip does.

    Args:
        embedding: float ``[tokens + side * side, width]``; tokens before the patches, such as the class token, are
            kept as they are.
        side: patches along a side.
        new_side: the same afterwards.

    Returns:
        float ``[tokens + new_side * new_side, width]``.
    """
    kept, grid = embedding[: -(side**2)], embedding[-(side**2) :]
    channels_first = grid.T.reshape(1, -1, side, side)
    resized = functional.interpolate(channels_first, size=(new_side, new_side), mode="bicubic", antialias=True)
    return torch.cat([kept, resized.flatten(2)[0].T])
