"""Image-text pairs of several files, numbered as one sequence of rows: the numbers, and the interface of a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from model_export.errors import DataError

Rows: TypeAlias = npt.NDArray[np.int64]


class BrokenRowError(DataError):
    """One row cannot be read, of a file that can; the message names both."""


class Texts(NamedTuple):
    """The texts of a row.

    Attributes:
        text: its noun or caption; None if the row has none that is UTF-8.
        label: its class; None if the row has none.
    """

    text: str | None
    label: str | None


class Pair(NamedTuple):
    """One row: encoded image bytes, and its texts as in `Texts`."""

    image: bytes
    text: str | None
    label: str | None


class PairGroup(Protocol):
    """Rows of a file that were read together."""

    def __getitem__(self, index: int) -> Pair:
        """Return a row by its number within the group. Raises `BrokenRowError` if it has no image."""


class PairFile(Protocol):
    """A file of pairs. It can be pickled, and holds no open handle."""

    @property
    def name(self) -> str:
        """Return its path, for people."""

    @property
    def digest(self) -> str:
        """Return a hash that changes with its content as far as can be seen without reading all of it."""

    @property
    def has_labels(self) -> bool:
        """Return whether its rows may have a class."""

    @property
    def group_rows(self) -> Rows:
        """Return the number of rows of each of its groups."""

    def load(self, group: int) -> PairGroup:
        """Read a group. Raises `DataError` if the file is damaged."""

    def texts(self, group: int) -> Sequence[Texts]:
        """Read the texts of a group without its images. Raises `DataError` if the file is damaged."""

    def where(self, row: int) -> str:
        """Return the file and the row within it, for an error message."""


class RowGroups(NamedTuple):
    """The bounds of row groups: neighbouring rows of one file that are cheap to read together.

    Attributes:
        bounds: global number of each group's first row, and the number of all rows, int64 ``[groups + 1]``.
        files: global number of each file's first row, int64 ``[files]``.
    """

    bounds: Rows
    files: Rows

    @property
    def first(self) -> Rows:
        """Return the global number of each group's first row."""
        return self.bounds[:-1]

    @property
    def rows(self) -> Rows:
        """Return the number of rows of each group."""
        return np.diff(self.bounds)

    def group_of(self, row: int) -> int:
        """Return the group of a row."""
        return int(np.searchsorted(self.bounds, row, side="right")) - 1

    def file_of(self, row: int) -> int:
        """Return the file of a row."""
        return int(np.searchsorted(self.files, row, side="right")) - 1

    def first_of_file(self, rows: Rows) -> Rows:
        """Return the number of the first row of each row's file."""
        first: Rows = self.files[np.searchsorted(self.files, rows, side="right") - 1]
        return first
