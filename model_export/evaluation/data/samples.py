"""Labelled images: the interface of their sources, and the choice of rows."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from model_export.data.held_out import is_held_out

Label: TypeAlias = str | int
"""A class's name or WordNet id, or its number in a list of classes."""

Rows: TypeAlias = npt.NDArray[np.int64]

IMAGE_SUFFIXES: Final = frozenset(
    "jpg jpeg jpe jfif jif jfi pjpeg pjp mpo png apng webp gif bmp dib tif tiff avif avifs".split()  # noqa: SIM905
)
"""Suffixes of image files, lower case, without the dot: those that `anyclass classify` takes."""

_DRAW_SEED: Final = 0
_SHOWN_CHARS: Final = 200


class Sample(NamedTuple):
    """One image: its number within its source, its place (for people), and a function that reads its encoded bytes.

    ``read`` may run in another thread; it raises OSError, or AnyclassError if the image is missing or too large.
    """

    row: int
    where: str
    read: Callable[[], bytes]


class Source(Protocol):
    """Labelled images in a file or a folder. Opening it reads all labels; images are read one after another."""

    @property
    def path(self) -> Path:
        """Return its file or folder."""

    @property
    def labels(self) -> Sequence[Label]:
        """Return the class of every row."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Return the names of numeric labels, or None if the source does not name them."""

    def samples(self, rows: Rows) -> Iterator[Sample]:
        """Yield the images of these rows: ascending, int64 ``[n]``.

        Raises:
            DataError: the source itself is damaged, not only an image in it.
        """


def choose_rows(counts: Sequence[int], *, every: int = 1, limit: int | None = None) -> list[Rows]:
    """Choose rows of several sources.

    Args:
        counts: rows of each source.
        every: take the last of each ``every`` rows of a source, which a training run with this ``validation_every``
            holds out; 1 takes all rows.
        limit: draw at most this many of the remaining rows, always the same ones. The draw is random because data are
            often sorted by class, and the first rows would show few classes.

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
    """Make a name from a file safe for a terminal: one escaped line of limited length."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name[:_SHOWN_CHARS])
    return escaped if len(name) <= _SHOWN_CHARS else escaped + "…"
