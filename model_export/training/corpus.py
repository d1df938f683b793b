"""The captions that a tokenizer is trained on, within bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

from model_export.data.captions import is_usable
from model_export.data.reader import PairReader
from service.model.prompts import fill

MOST_WORDS = 100_000
"""Different texts up to which each is set into every template, as nouns and class names are."""
MOST_ROWS = 2_000_000
"""Rows that are read; of more, evenly spaced row groups."""


def corpus(reader: PairReader, templates: Sequence[str]) -> Iterator[str]:
    """Yield captions.

    Of nouns or class names, each is set into every template, once however often it occurs: their number is small. Of
    sentences, each row's is set into the next template.

    Raises:
        DataError: a file is damaged.
    """
    words = set[str]()
    for row in reader.texts(most=MOST_ROWS):
        words.update(text for text in row if text is not None and is_usable(text))
        if len(words) > MOST_WORDS:
            break
    else:
        yield from (fill(template, word) for word in sorted(words) for template in templates)
        return
    words.clear()
    next_template = cycle(templates)
    for row in reader.texts(most=MOST_ROWS):
        yield from (fill(next(next_template), text) for text in row if text is not None and is_usable(text))
