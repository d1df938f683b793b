"""Draw captions for pairs with a noun and a class name instead of a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.model.prompts import fill


@dataclass(frozen=True)
class Captioner:
    """Draws a caption: the noun or the class name, set into a template.

    Queries need both: nouns teach finer words, class names are the words that users write.
    """

    templates: tuple[str, ...]
    class_name_share: float

    def caption(self, noun: str, label: str, rng: np.random.Generator) -> str:
        """Draw one caption for a pair, with ``label`` in ``class_name_share`` of the draws, else ``noun``."""
        word = label if rng.random() < self.class_name_share else noun
        return fill(self.templates[int(rng.integers(len(self.templates)))], word)


def all_captions(templates: Sequence[str], words: Sequence[str]) -> list[str]:
    """Return every possible caption, to train a tokenizer on."""
    return [fill(template, word) for word in words for template in templates]
