"""Counts the operations of CLIP's towers."""

from __future__ import annotations

from model_export.families.clip.config import ModifiedResNetConfig, TextTransformerConfig, VisionTransformerConfig
from model_export.families.operations import Operations, transformer_operations

_EXPANSION = 4
"""Of a bottleneck's channels at its end."""


def clip_operations(
    embed_dim: int, image: VisionTransformerConfig | ModifiedResNetConfig, text: TextTransformerConfig
) -> Operations:
    """Count the multiply-adds of both towers."""
    of_image = _vit(image, embed_dim) if isinstance(image, VisionTransformerConfig) else _resnet(image, embed_dim)
    of_text = transformer_operations(text.context_length, text.width, text.layers, text.mlp_width or 4 * text.width)
    return Operations(of_image, of_text + text.width * embed_dim)


def _vit(config: VisionTransformerConfig, embed_dim: int) -> int:
    patches = (config.image_size // config.patch_size) ** 2
    stem = patches * 3 * config.patch_size**2 * config.width
    mlp_width = config.mlp_width or 4 * config.width
    blocks = transformer_operations(patches + 1, config.width, config.layers, mlp_width)
    return stem + blocks + config.width * embed_dim


def _resnet(config: ModifiedResNetConfig, embed_dim: int) -> int:
    side, half = config.image_size // 2, config.width // 2
    total = side**2 * 9 * (3 * half + half * half + half * config.width)
    side //= 2
    before = config.width
    for stage, blocks in enumerate(config.layers):
        planes = config.width * 2**stage
        after = planes * _EXPANSION
        # The stride is a pool behind the second convolution, so the first two see the larger map.
        larger, side = side, side if stage == 0 else side // 2
        total += larger**2 * (before * planes + 9 * planes**2) + side**2 * (planes * after + before * after)
        total += (blocks - 1) * side**2 * (after * planes + 9 * planes**2 + planes * after)
        before = after
    # As OpenAI's and open_clip's programs attend, from every position; ours from the first alone, whose result is used.
    positions = side**2 + 1
    return total + positions * (3 * before**2 + before * embed_dim) + 2 * positions**2 * before
