"""Matched pairs for tests and benchmarks of the balance."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq


def matched_pairs(queries: Sequence[Sequence[int] | None], ids: Sequence[str] | None = None) -> pa.Table:
    """Return pairs with these queries; ids are numbers unless given."""
    names = [f"{row:06}" for row in range(len(queries))] if ids is None else list(ids)
    return pa.table({"id": pa.array(names, pa.string()), "queries": pa.array(queries, pa.list_(pa.int32()))})


def zipf_pairs(pairs: int, queries: int, seed: int, first: int = 0) -> pa.Table:
    """Return pairs with zero to five queries each; query k is about k times as rare as the first.

    Args:
        pairs: number of rows.
        queries: length of the query list.
        seed: any.
        first: number of the first pair, in its id.
    """
    chance = np.random.default_rng([seed, first])
    lengths = chance.integers(0, 6, pairs)
    drawn = np.exp(chance.random(int(lengths.sum())) * np.log(queries)).astype(np.int64) - 1
    rows = np.repeat(np.arange(pairs), lengths)
    # Ascending within a pair, and each query once.
    unique = np.unique(rows * queries + np.clip(drawn, 0, queries - 1))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(unique // queries, minlength=pairs))]).astype(np.int32)
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array((unique % queries).astype(np.int32)))
    ids = pa.array(np.char.mod("%032x", np.arange(first, first + pairs)), pa.string())
    return pa.table({"id": ids, "queries": lists})


def write_shards(folder: Path, table: pa.Table, cuts: Sequence[int] = ()) -> list[str]:
    """Write a table as Parquet files that end at these rows, and return their names."""
    edges = [0, *sorted(cuts), table.num_rows]
    names = []
    for number, (start, stop) in enumerate(pairwise(edges)):
        names.append(str(folder / f"{number:05}.parquet"))
        pq.write_table(table.slice(start, stop - start), names[-1])
    return names


def lists(table: pa.Table) -> list[list[int]]:
    """Return the queries of each pair."""
    return [each or [] for each in table["queries"].to_pylist()]


def counts(table: pa.Table, queries: int) -> npt.NDArray[np.int64]:
    """Count the matches of each query, one by one."""
    found = np.zeros(queries, np.int64)
    for each in lists(table):
        found[each] += 1
    return found
