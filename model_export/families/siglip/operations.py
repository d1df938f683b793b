"""Counts the operations of SigLIP's towers."""

from __future__ import annotations

from model_export.families.operations import Operations, transformer_operations
from model_export.families.siglip.config import SiglipConfig


def siglip_operations(config: SiglipConfig) -> Operations:
    """Count the multiply-adds of both towers."""
    image, text = config.image, config.text
    stem = image.patches * 3 * image.patch_size**2 * image.width
    tower = transformer_operations(image.patches, image.width, image.layers, image.mlp_width)
    # One learned query over all patches, and an MLP behind it.
    pool = (2 * image.patches + 2) * image.width**2 + 2 * image.patches * image.width
    pool += 2 * image.width * image.mlp_width
    of_text = transformer_operations(text.context_length, text.width, text.layers, text.mlp_width)
    return Operations(stem + tower + pool, of_text + text.width * text.embed_dim)
