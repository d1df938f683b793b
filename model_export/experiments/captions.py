"""Decide the caption of every row before training: its noun, words that the picture does not decide, false captions.

A caption follows from its row and from constants alone. So it is the same in every epoch, for every seed of a training
and in every arm that has the same words and the same share of false captions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from model_export.data.captions import is_usable
from model_export.data.pairs import Pair, PairFile, Rows, Texts
from model_export.data.reader import PairReader
from model_export.experiments.words import WORDS

_NOUN, _WORDS, _FALSE = range(3)
"""Random streams: the nouns of an arm with more words are those of an arm without."""


def row_captions(
    texts: Sequence[Texts], trained: Rows, *, class_name_share: float, words: int = 0, false_share: float = 0.0
) -> list[str | None]:
    """Return each row's caption without a template; None for a row without a usable text.

    Args:
        texts: of every row.
        trained: the rows among which false captions are exchanged, ascending.
        class_name_share: the share of rows that are called by their class, the others by their text.
        words: words of `WORDS` around the noun, drawn with replacement; the noun stands at a random place among them.
        false_share: share of the trained rows whose nouns are exchanged among each other. By chance a few of them
            get a noun equal to their own.
    """
    by_class = _stream(_NOUN).random(len(texts)) < class_name_share
    nouns = [
        row.label if named and row.label is not None and is_usable(row.label) else row.text
        for row, named in zip(texts, by_class, strict=True)
    ]
    source = _sources(len(texts), trained, false_share)
    stream = _stream(_WORDS)
    drawn = stream.integers(0, len(WORDS), (len(texts), words))
    places = stream.integers(0, words + 1, len(texts))
    captions = list[str | None]()
    for row, (numbers, place) in enumerate(zip(drawn.tolist(), places.tolist(), strict=True)):
        noun = nouns[source[row]]
        around = [WORDS[number] for number in numbers]
        usable = noun is not None and is_usable(noun)
        captions.append(" ".join([*around[:place], noun, *around[place:]]) if noun is not None and usable else None)
    return captions


def _sources(rows: int, trained: Rows, false_share: float) -> Rows:
    """Return the row that each row has its noun of: int64 ``[rows]``, its own number but for false captions.

    The rows with false captions of a smaller share are among those of a larger one.
    """
    source = np.arange(rows)
    chosen = _stream(_FALSE).permutation(trained)[: round(false_share * len(trained))]
    source[chosen] = np.roll(chosen, 1)
    return source


def _stream(number: int) -> np.random.Generator:
    return np.random.default_rng([2021, number])


class CaptionedReader(PairReader):
    """Reads rows with captions that were decided before; of a class it says nothing, so no objective learns from it."""

    def __init__(self, files: Sequence[PairFile], captions: Sequence[str | None], *, groups_in_memory: int) -> None:
        super().__init__(files, groups_in_memory=groups_in_memory)
        self._captions = captions

    def __getitem__(self, row: int) -> Pair:
        """Read a row, as `PairReader` does, with its decided caption and without its class."""
        return Pair(super().__getitem__(row).image, self._captions[row], None)
