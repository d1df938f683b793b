"""Prompt-template sets that ship with the project, usable by name with any bundle."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

TEMPLATE_SETS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        # The CLIP authors' notebook on prompt engineering for ImageNet: of their 80 prompts, the seven that a forward
        # selection picked before it stopped.
        "seven": (
            "itap of a {}.",
            "a bad photo of the {}.",
            "a origami {}.",
            "a photo of the large {}.",
            "a {} in a video game.",
            "art of the {}.",
            "a photo of the small {}.",
        ),
    }
)
