"""Labelled images from anywhere: what a source of them must be able to do, and which of its rows are taken."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from model_export.data.held_out import is_held_out

Label: TypeAlias = str | int
"""A class's name or WordNet id, or its number in a list of classes."""

Rows: TypeAlias = npt.NDArray[np.int64]

IMAGE_SUFFIXES: Final = frozenset({"jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"})
"""How the name of an image file ends, lower case, without the dot."""

_DRAW_SEED: Final = 0
_SHOWN_CHARS: Final = 200


class Sample(NamedTuple):
    """One image: its number within its source, where it lies (for people), and how its encoded bytes are had.

    ``read`` may be called in another thread; it raises OSError, or AnyclassError where there is no image to be had.
    """

    row: int
    where: str
    read: Callable[[], bytes]


class Source(Protocol):
    """Labelled images in a file or a folder. Labels are known once it is open; images are read one after another."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    @property
    def labels(self) -> Sequence[Label]:
        """The class of every row."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """What the numbers among the labels stand for, where the source itself says it."""

    def samples(self, rows: Rows) -> Iterator[Sample]:
        """Yield the images of these rows, which are ascending, int64 ``[n]``.

        Raises:
            DataError: the source itself, not only an image in it, is damaged.
        """


def choose_rows(counts: Sequence[int], *, every: int = 1, limit: int | None = None) -> list[Rows]:
    """Choose rows of several sources.

    Args:
        counts: rows of each source.
        every: of each source the last of each ``every`` rows, those that a training run with this
            ``validation_every`` holds out; 1 for all.
        limit: of what is left at most so many in all, drawn at random, always the same ones: data are often sorted
            by class, and the first rows would show a few classes only.

    Returns:
        For each source its chosen rows, int64, ascending.
    """
    kept = [np.flatnonzero(is_held_out(np.arange(count, dtype=np.int64), every)) for count in counts]
    bounds = np.cumsum([0, *map(len, kept)])
    if limit is None or limit >= bounds[-1]:
        return kept
    drawn = np.sort(np.random.default_rng(_DRAW_SEED).choice(bounds[-1], limit, replace=False))
    return [
        rows[drawn[(drawn >= start) & (drawn < end)] - start]
        for rows, start, end in zip(kept, bounds[:-1], bounds[1:], strict=True)
    ]


def printable(name: str) -> str:
    """Return a name from a file so that it cannot steer a terminal: one line, escaped, not endless."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name[:_SHOWN_CHARS])
    return escaped if len(name) <= _SHOWN_CHARS else escaped + "…"
