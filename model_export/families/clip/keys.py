"""CLIP's parameters by OpenAI's and open_clip's names."""

from __future__ import annotations

from typing import Final

from model_export.families.key_tables import RESBLOCK, KeyTable, Rows, same, under

_VISION_TRANSFORMER: Final[Rows] = {
    **same("conv1.weight", "class_embedding", "positional_embedding", "ln_pre.*", "ln_post.*", "proj"),
    **under("transformer.resblocks.#.", "blocks.#.", RESBLOCK),
}

_MODIFIED_RESNET: Final[Rows] = same(
    "conv#.weight",
    "bn#.@",
    "layer#.#.conv#.weight",
    "layer#.#.bn#.@",
    "layer#.#.downsample.0.weight",
    "layer#.#.downsample.1.@",
    "attnpool.positional_embedding",
    *(f"attnpool.{which}_proj.*" for which in "qkvc"),
)

_TEXT_TRANSFORMER: Final[Rows] = {
    **same("token_embedding.weight", "positional_embedding", "ln_final.*", "text_projection"),
    **under("transformer.resblocks.#.", "blocks.#.", RESBLOCK),
}

_IMAGE_AND_SCALE: Final[Rows] = {
    **same("logit_scale"),
    **under("visual.", "visual.", {**_VISION_TRANSFORMER, **_MODIFIED_RESNET}),
}

OPENAI: Final = KeyTable({**_IMAGE_AND_SCALE, **under("", "text.", _TEXT_TRANSFORMER)})
"""OpenAI's names, which open_clip uses too."""

CUSTOM_TEXT: Final = KeyTable({**_IMAGE_AND_SCALE, **under("text.", "text.", _TEXT_TRANSFORMER)})
"""open_clip's names of a model with ``custom_text``."""
