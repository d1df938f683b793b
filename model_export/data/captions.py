"""Draw captions for pairs, and turn them into ids as CLIP does: cut to the context, never refused."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from service.model.arrays import Ids
from service.model.prompts import fill, normalise_label
from service.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Captioner:
    """Draws a caption: the noun or the class name, set into a template.

    Queries need both: nouns teach finer words, class names are the words that users write. A pair without a class is
    always called by its text.
    """

    templates: tuple[str, ...]
    class_name_share: float

    def caption(self, noun: str, label: str | None, rng: np.random.Generator) -> str:
        """Draw one caption for a pair, with ``label`` in ``class_name_share`` of the draws, else ``noun``."""
        by_class = rng.random() < self.class_name_share
        word = label if by_class and label is not None else noun
        return fill(self.templates[int(rng.integers(len(self.templates)))], word)


class CaptionEncoder:
    """Turns captions into ids, cut as transformers' ``CLIPTokenizer(truncation=True)`` cuts them.

    A caption of more tokens than the context keeps its first ones, and the token for the end of text behind them.
    """

    def __init__(self, tokenizer: Tokenizer, context_length: int) -> None:
        self.tokenizer = tokenizer
        """Refuses longer texts, as the service does."""
        # An empty text has only the tokens around every text: one for the end, often one for the start.
        (self._frame,) = tokenizer.tokenize([""])
        self._most = context_length - len(self._frame)

    def __call__(self, captions: Sequence[str]) -> Ids:
        """Return the ids, padded: int64 ``[captions, length]``."""
        return self.encode(captions)[0]

    def encode(self, captions: Sequence[str]) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """Return the ids, and which captions were cut: bool ``[captions]``."""
        pieces = list(self.tokenizer.pieces(captions))
        start, end = self._frame[:-1], self._frame[-1:]
        ids = self.tokenizer.pad([[*start, *piece[: self._most], *end] for piece in pieces])
        return ids, np.array([len(piece) > self._most for piece in pieces], dtype=np.bool_)


# Nouns and classes occur many times; sentences pass through the cache at little cost.
@lru_cache(maxsize=4096)
def is_usable(text: str | None) -> bool:
    """Return whether a text can be a caption: it is there, says something, and has neither NUL nor lone surrogates."""
    if text is None or "\0" in text:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return bool(normalise_label(text))


@lru_cache(maxsize=4096)
def meaning(text: str) -> int:
    """Return 64 bits that two texts share if they are one text to the model: the same words, in either case.

    Equal texts have equal numbers on every machine; of 10 million different texts, two share one with a probability
    of 3 in a million.
    """
    words = normalise_label(text).lower().encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little", signed=True)
