"""Number of matched pairs of each query, in a file that names the query list and the shards that were counted."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model_export.curation.matches import Counts
from model_export.errors import CurationError, first_line
from model_export.files import replacing

_METADATA: Final = b"anyclass"
_FORMAT: Final = 1


@dataclass(frozen=True, eq=False)
class QueryCounts:
    """Counts of a list of queries over shards; those of different shards can be added up.

    Attributes:
        matched: pairs that contain each query, int64 ``[queries]``.
        queries: digest of the query list.
        shards: sha256 of each shard that was counted.
    """

    matched: Counts
    queries: str
    shards: frozenset[str]

    def __add__(self, other: QueryCounts) -> QueryCounts:
        """Add counts of other shards.

        Raises:
            CurationError: they are of another query list, or of the same shards.
        """
        if self.queries != other.queries:
            raise CurationError("counts of different query lists cannot be added; count with one list")
        if both := sorted(self.shards & other.shards):
            raise CurationError(f"shard {both[0][:16]}… would be counted twice; add counts of different shards")
        return QueryCounts(self.matched + other.matched, self.queries, self.shards | other.shards)

    def check(self, queries: str, shards: Iterable[str]) -> None:
        """Refuse counts of another list or of other shards.

        Args:
            queries: digest of the query list.
            shards: sha256 of each shard to balance.

        Raises:
            CurationError: the counts do not fit.
        """
        if queries != self.queries:
            raise CurationError(
                f"the counts are of another query list ({self.queries[:16]}…, not {queries[:16]}…); delete them, "
                "and they are made again"
            )
        wanted = frozenset(shards)
        if wanted != self.shards:
            raise CurationError(
                f"the counts are of other shards: {len(self.shards - wanted):,} of them are not among these, "
                f"{len(wanted - self.shards):,} of these were not counted; delete them, and they are made again"
            )

    def write(self, path: Path) -> None:
        """Write a Parquet file with a column ``matched``; the same counts give the same bytes."""
        content = {"format": _FORMAT, "queries": self.queries, "shards": sorted(self.shards)}
        schema = pa.schema([("matched", pa.int64())], {_METADATA: json.dumps(content).encode()})
        with replacing(path) as partial:
            pq.write_table(pa.table({"matched": self.matched}, schema), partial)

    @classmethod
    def read(cls, path: Path) -> QueryCounts:
        """Read a file.

        Raises:
            CurationError: it cannot be read, or holds something else.
        """
        try:
            table = pq.read_table(path)
            content = json.loads(table.schema.metadata[_METADATA])
            if content["format"] != _FORMAT:
                raise CurationError(f"{path}: has format {content['format']}; delete it, and it is made again")
            matched = table["matched"].to_numpy().astype(np.int64)
            return cls(matched, content["queries"], frozenset(content["shards"]))
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise CurationError(
                f"{path}: holds no counts of queries ({first_line(error)}); delete it, and it is made again"
            ) from error
