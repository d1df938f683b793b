"""The balance as a planned stage of a recipe: count the queries of the rows before it, then decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_export.curation.balance import Balance, BalanceSettings
from model_export.curation.balancing import Passes, counted, plan_balance
from model_export.curation.pieces import file_digest
from model_export.curation.planned import Rows
from model_export.curation.progress import CurationProgress
from model_export.curation.query_counts import QueryCounts
from model_export.curation.query_list import QueryList
from model_export.curation.stage import digest_of
from model_export.drivers.driver import Driver
from model_export.errors import CurationError

COUNTS: Final = "counts.parquet"
"""File of the queries' counts before the balance, in the folder of the records."""
_VERSION: Final = 1


@dataclass(frozen=True)
class PlannedBalance:
    """A `Balance` to be planned.

    Attributes:
        settings: method, t and seed.
        queries: the list that the pairs are matched with.
        counts: file for the counts; by default, one in the folder of the records.
    """

    settings: BalanceSettings
    queries: QueryList
    counts: Path | None = None
    name: str = "balance"

    @property
    def digest(self) -> str:
        """Return a hash of the settings and the list."""
        return digest_of(self.name, _VERSION, {**self.settings.as_json(), "queries": self.queries.digest})

    def check(self, names: Sequence[str], driver: Driver, progress: CurationProgress) -> None:
        """Check the counts that a file has; see `PlannedStage`."""
        if self.counts and self.counts.exists():
            found = QueryCounts.read(self.counts)
            progress.begin("digests of shards", len(names))
            shards = set()
            for digest in driver.run(file_digest, names, threads=True):
                shards.add(digest)
                progress.advance()
            found.check(self.queries.digest, shards)

    def plan(self, rows: Rows, folder: Path, driver: Driver, progress: CurationProgress) -> Balance:
        """Count and decide; see `PlannedStage`."""
        names = [file.name for file in rows.files]
        passes = Passes(names, driver.run, progress.begin, progress.advance)
        shards = frozenset(file.digest for file in rows.files)
        if self.counts is None:
            _drop_others(folder / COUNTS, self.queries.digest, shards)
        counts = counted(self.counts or folder / COUNTS, passes, self.queries, shards)
        return plan_balance(passes, self.settings, counts.matched)


def _drop_others(path: Path, queries: str, shards: frozenset[str]) -> None:
    """Remove counts of a run before that do not fit: they are ours, and made again."""
    if path.exists():
        try:
            QueryCounts.read(path).check(queries, shards)
        except CurationError:
            path.unlink()
