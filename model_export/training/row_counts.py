"""Count the rows of a run: those of all ranks, brought together now and then."""

from __future__ import annotations

from model_export.data.loading import Batch
from model_export.data.tally import BrokenRow, Tally
from model_export.training.broken_rows import BrokenRows
from model_export.training.ranks import Ranks


class RowCounts:
    """Adds up the tallies of batches, and has their broken rows listed.

    Attributes:
        of_run: tally of the run, up to the last exchange.
        since_log: the same since the last call of :meth:`logged`.
    """

    def __init__(self, ranks: Ranks, of_run: Tally, broken_rows: BrokenRows) -> None:
        self._ranks = ranks
        self._broken_rows = broken_rows
        self._own, self._broken = Tally(), list[BrokenRow]()
        self.of_run = of_run
        self.since_log = Tally()

    def add(self, batch: Batch, *, exchange: bool) -> None:
        """Count a batch; with ``exchange`` bring the counts of all ranks together, which all must do at once.

        Raises:
            DataError: the run has too many broken rows. Only the leader raises it, and so ends all.
        """
        self._own += batch.tally
        self._broken += batch.broken
        if self._ranks.size > 1 and not exchange:
            return
        broken: list[BrokenRow] = []
        for tally, rows in self._ranks.gather_objects((self._own, self._broken)):
            self.of_run += tally
            self.since_log += tally
            broken += rows
        self._own, self._broken = Tally(), []
        if self._ranks.leads:
            self._broken_rows.note(broken, self.of_run)

    def logged(self) -> None:
        """Begin again to count since the last line of metrics."""
        self.since_log = Tally()
