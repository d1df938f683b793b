"""Passes over matched shards that decide a balance: count the queries, charge the pairs, find the bounds.

Each pass reads only the columns of ids and queries, file by file, in one process or several, and adds up the results.
So the balance depends on the pairs only, not on their order, their files or the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from model_export.curation.balance import Balance, BalanceSettings, Method, independent_bounds
from model_export.curation.caps import Sample, Windows, bounds, joined, sample, whole_windows, windows
from model_export.curation.coins import COINS, pair_coins
from model_export.curation.matches import NONE, Counts, Matches, Rarity
from model_export.curation.output import writing
from model_export.curation.query_counts import QueryCounts
from model_export.curation.query_list import QueryList
from model_export.curation.stage import ID, QUERIES
from model_export.curation.tar_shards import queries_in_tar
from model_export.data.parquet import is_string, open_parquet
from model_export.data.patterns import is_tar
from model_export.errors import CurationError, DataError, first_line

_Result = TypeVar("_Result")

_ROWS: Final = 131_072
_BUFFER: Final = 2**20


class RunTasks(Protocol):
    """Yields the result of a function for each task, in any order; in this process, in several, or on a cluster."""

    def __call__(self, function: Callable[[str], _Result], tasks: Sequence[str], /) -> Iterable[_Result]:
        """Run the function, which can be pickled."""


@dataclass(frozen=True)
class Passes:
    """Shards to pass over, and a way to do it.

    Attributes:
        shards: names of Parquet files with the columns ``id`` and ``queries``.
        run_tasks: runs a function on each shard.
        begin: called with the name and the number of shards of each pass.
        advance: called after each shard.
    """

    shards: Sequence[str]
    run_tasks: RunTasks = map
    begin: Callable[[str, int], None] = lambda _, __: None
    advance: Callable[[], None] = lambda: None

    def run(self, name: str, task: Callable[[str], _Result]) -> Iterator[_Result]:
        """Yield the result of a function for each shard."""
        self.begin(name, len(self.shards))
        for result in self.run_tasks(task, self.shards):
            self.advance()
            yield result


def count_matches(passes: Passes, queries: int) -> Counts:
    """Return the number of pairs of each query, int64 ``[queries]``.

    Raises:
        CurationError: a shard was not matched, or with another list.
        DataError: a shard cannot be read.
    """
    return _total(passes.run("count queries", _Count(queries)), queries)


def counted(path: Path, passes: Passes, queries: QueryList, shards: frozenset[str]) -> QueryCounts:
    """Read the counts of a file, or count and write the file.

    Args:
        path: of the file; it need not exist.
        passes: over the shards.
        queries: the list.
        shards: digest of each shard.

    Raises:
        CurationError: the file's counts are of another list or of other shards; a shard was not matched.
        DataError: a shard cannot be read.
    """
    if path.exists():
        found = QueryCounts.read(path)
        found.check(queries.digest, shards)
        return found
    made = QueryCounts(count_matches(passes, len(queries.queries)), queries.digest, shards)
    with writing(path):
        made.write(path)
    return made


def plan_balance(passes: Passes, settings: BalanceSettings, matched: Counts) -> Balance:
    """Decide the balance of shards.

    Args:
        passes: over the shards.
        settings: method, t and seed.
        matched: number of pairs of each query in these shards.

    Raises:
        CurationError: the shards were not matched with this list.
        DataError: a shard cannot be read.
    """
    if settings.method is Method.INDEPENDENT:
        return Balance(settings, matched, independent_bounds(matched, settings.most))
    charged = matched
    limits = np.full(matched.size, COINS)
    if (matched > settings.most).any():
        charged = _total(passes.run("charge pairs", _Charge(matched)), matched.size)
    view = windows(charged, settings.most)
    while view.queries.size:
        found = joined(passes.run("find bounds", _Sample(matched, view, settings.seed)), view)
        limits[view.queries], outside = bounds(view, found, settings.most)
        view = whole_windows(outside)
    return Balance(settings, matched, limits)


def _total(parts: Iterable[Counts], queries: int) -> Counts:
    total = np.zeros(queries, np.int64)
    for part in parts:
        total += part
    return total


@dataclass(frozen=True)
class _Count:
    queries: int

    def __call__(self, name: str) -> Counts:
        if is_tar(name):
            return queries_in_tar(Path(name), self.queries)
        return _total((found.counts(self.queries) for found, _ in _matches(name, self.queries)), self.queries)


@dataclass(frozen=True)
class _Charge:
    matched: Counts

    def __call__(self, name: str) -> Counts:
        rarity, queries = Rarity(self.matched), self.matched.size
        charged = (found.rarest(rarity) for found, _ in _matches(name, queries))
        return _total((np.bincount(each[each != NONE], minlength=queries) for each in charged), queries)


@dataclass(frozen=True)
class _Sample:
    matched: Counts
    view: Windows
    seed: int

    def __call__(self, name: str) -> Sample:
        rarity, slots = Rarity(self.matched), self.view.slots(self.matched.size)
        parts = []
        for found, table in _matches(name, self.matched.size, ID):
            charged = found.rarest(rarity)
            mine = np.where(charged == NONE, -1, slots[charged])
            rows = np.flatnonzero(mine >= 0)
            parts.append(sample(self.view, mine[rows], pair_coins(table[ID].take(pa.array(rows)), self.seed)))
        return joined(parts, self.view)


def _matches(name: str, queries: int, *others: str) -> Iterator[tuple[Matches, pa.Table]]:
    file = open_parquet(name, buffer_size=_BUFFER)
    for column in (QUERIES, *others):
        if column not in file.schema_arrow.names:
            raise CurationError(f"{name}: no column {column!r}; run curate match on these pairs first")
    if ID in others and not is_string(file.schema_arrow.field(ID).type):
        raise CurationError(f"{name}: column {ID!r} is not of strings; run curate match on these pairs first")
    try:
        for batch in file.iter_batches(_ROWS, columns=[QUERIES, *others]):
            table = pa.Table.from_batches([batch])
            if ID in others and table[ID].null_count:
                raise CurationError(f"{name}: a pair has no id; run curate match on these pairs first")
            try:
                yield Matches.of(table, queries), table
            except CurationError as error:
                raise CurationError(f"{name}: {error}") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{name}: cannot be read ({first_line(error)})") from error
