"""Groups of rows that belong together: connected components, found pair by pair."""

from __future__ import annotations

import numpy as np

from model_export.curation.views import Bits, Rows


class Groups:
    """Components of rows numbered from 0; each is known by its first row. 8 bytes a row."""

    def __init__(self, rows: int) -> None:
        self._earlier = np.arange(rows)  # a row of the same group, not behind this one; its own for the first

    def firsts(self, rows: Rows | None = None) -> Rows:
        """Return the first row of the group of each row, or of all."""
        found = self._earlier if rows is None else self._earlier[rows]
        while not np.array_equal(found, earlier := self._earlier[found]):
            found = earlier
        return found

    def are_first(self) -> Bits:
        """Return whether each row is the first of its group."""
        return np.equal(self._earlier, np.arange(self._earlier.size))

    def sizes(self) -> dict[int, int]:
        """Return the number of groups by their size, for sizes above 1, ascending."""
        sizes = np.bincount(self.firsts(), minlength=1)
        counts = np.bincount(sizes[sizes > 1])
        return {int(size): int(counts[size]) for size in np.flatnonzero(counts)}

    def join(self, pairs: Rows) -> None:
        """Put the rows of each pair, ``[pairs, 2]``, into one group."""
        while len(pairs):
            ends = np.sort(self.firsts(pairs.ravel()).reshape(-1, 2), axis=1)
            pairs = ends[ends[:, 0] < ends[:, 1]]
            np.minimum.at(self._earlier, pairs[:, 1], pairs[:, 0])

    def joined(self, some: Rows, others: Rows) -> Bits:
        """Return whether two rows are in one group, for each pair of them."""
        return np.equal(self.firsts(some), self.firsts(others))
