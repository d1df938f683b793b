"""Estimates when a device would finish new work, from measured latencies and the queue."""

import time
from collections.abc import Callable, Iterable
from typing import Final

from service.inference.batch_execution import Work
from service.inference.batch_selection import Rules
from service.inference.entries import Running
from service.inference.latency_model import WINDOW, LatencyModel
from service.lanes import Lane

_SLACK: Final = 0.2
"""Throughput given up for shorter background batches while interactive requests arrive: see docs/scheduling.md."""

_RECENT_S: Final = 10.0
"""Background batches need not be short after so long without interactive work."""

_SPARE_AT_FIRST: Final = 256.0
"""Units of padding allowed in a batch until the device's overhead is known."""


class LoadEstimator:
    """Learns the latencies of one device and counts its queue. Belongs to one event loop."""

    def __init__(self, max_batch: int, background_every: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_batch = max_batch
        self._background_every = background_every
        self._clock = clock
        self._models: dict[Work, LatencyModel] = {}
        self._waiting: dict[tuple[Work, Lane], int] = {}
        self._interactive_at = -_RECENT_S

    def limit(self, work: Work) -> int:
        """Return the largest number of rows in a batch."""
        return work.max_batch or self._max_batch

    def rules(self, work: Work) -> Rules:
        """Return the limits on the next batch of this work."""
        model = self._models.get(work)
        limit = self.limit(work)
        if model is None or model.fit is None or model.batches < WINDOW:
            return Rules(limit, spare=_SPARE_AT_FIRST)
        background = limit
        if work.length is None and self._clock() - self._interactive_at < _RECENT_S:
            background = model.fit.enough(limit, _SLACK)
        return Rules(limit, spare=model.fit.spare_units(), background_limit=background)

    def observe(self, work: Work, rows: int, units: float, seconds: float) -> None:
        """Record a batch that ran."""
        self._models.setdefault(work, LatencyModel()).observe(rows, units, seconds)

    def count_waiting(self, work: Work, lane: Lane, rows: int) -> None:
        """Count rows that start to wait, or stop if negative."""
        if lane is Lane.INTERACTIVE and rows > 0:
            self._interactive_at = self._clock()
        self._waiting[work, lane] = self._waiting.get((work, lane), 0) + rows

    def completion_s(self, work: Work, rows: int, lane: Lane, running: Iterable[Running]) -> float | None:
        """Estimate the seconds until `rows` of `work` would be done; None before the first batch of this work.

        Args:
            rows: the new rows, and those of the same work and lane before them, in the queue or not yet.
            running: batches on the device.
        """
        own = self._seconds(work, rows)
        if own is None:
            return None
        total = own + sum(self._remaining(batch) for batch in running)
        batches = -(-rows // self.limit(work))
        for (other, its_lane), waiting in self._waiting.items():
            if waiting and its_lane <= lane and (other, its_lane) != (work, lane):
                total += self._seconds(other, waiting) or 0.0
                batches += -(-waiting // self.limit(other))
        if lane is Lane.INTERACTIVE:
            total += self._background_s(batches // (self._background_every - 1))
        return total

    def _background_s(self, turns: int) -> float:
        """Return the time of the waiting background batches that run within so many turns."""
        total = 0.0
        for (work, lane), waiting in self._waiting.items():
            if lane is Lane.BACKGROUND and waiting and turns > 0:
                rows = min(waiting, turns * self.limit(work))
                turns -= -(-rows // self.limit(work))
                total += self._seconds(work, rows) or 0.0
        return total

    def _seconds(self, work: Work, rows: int) -> float | None:
        model = self._models.get(work)
        return None if model is None else model.seconds(rows, self.limit(work))

    def _remaining(self, batch: Running) -> float:
        model = self._models.get(batch.work)
        if model is None or model.fit is None:
            return 0.0
        elapsed = 0.0 if batch.started is None else self._clock() - batch.started
        return max(0.0, model.fit.seconds(batch.units) - elapsed)
