"""Counts of matched queries, and the rarest query of each pair, on Arrow tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from model_export.curation.stage import QUERIES
from model_export.errors import CurationError

Counts = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int32]

NONE = -1
"""In place of a query, for a pair that has none."""


@dataclass(frozen=True)
class Matches:
    """Queries of the pairs of a table.

    Attributes:
        queries: ids of all pairs, one after the other, int32 ``[matches]``.
        lengths: number of queries of each pair, int64 ``[pairs]``.
    """

    queries: Ids
    lengths: Counts

    @classmethod
    def of(cls, table: pa.Table, queries: int) -> Matches:
        """Read the column of queries.

        Args:
            table: of matched pairs.
            queries: length of the query list.

        Raises:
            CurationError: the column is missing, or has an id that the list lacks.
        """
        if QUERIES not in table.column_names:
            raise CurationError(f"no column {QUERIES!r}; run curate match on these pairs first")
        column = table[QUERIES].combine_chunks()
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        found = column.flatten().to_numpy(zero_copy_only=False).astype(np.int32)
        if found.size and not 0 <= int(found.min()) <= int(found.max()) < queries:
            wrong = int(found.max()) if int(found.max()) >= queries else int(found.min())
            raise CurationError(
                f"query {wrong} is not in the list of {queries:,}: the pairs were matched with another list; give the "
                "one they were matched with"
            )
        return cls(found, lengths)

    def counts(self, queries: int) -> Counts:
        """Return the number of matches of each query, ``[queries]``."""
        return np.bincount(self.queries, minlength=queries)

    def lowest(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the lowest value of each pair that has queries, in order.

        Args:
            values: one for each match, ``[matches]``.
        """
        matched = self.lengths[self.lengths > 0]
        starts = np.cumsum(matched) - matched
        return np.minimum.reduceat(values, starts) if starts.size else values[:0]

    def rarest(self, order: Rarity) -> Ids:
        """Return the query that each pair is charged to, `NONE` where it has no query: int32 ``[pairs]``."""
        found = np.full(self.lengths.size, NONE, np.int32)
        found[self.lengths > 0] = order.queries[self.lowest(order.ranks[self.queries])]
        return found


class Rarity:
    """Order of queries from the rarest to the most frequent; of two with equal counts the lower id comes first.

    Attributes:
        queries: ids in this order, int32 ``[queries]``.
        ranks: place of each query in it, int32 ``[queries]``.
    """

    def __init__(self, matched: Counts) -> None:
        self.queries: Ids = np.argsort(matched, kind="stable").astype(np.int32)
        self.ranks: Ids = np.empty_like(self.queries)
        self.ranks[self.queries] = np.arange(self.queries.size, dtype=np.int32)
