"""What a device has learnt of its work and what waits for it; from both, when new work would be done."""

import time
from collections.abc import Callable, Iterable
from typing import Final

from service.inference.batch_execution import Work
from service.inference.batch_selection import Rules
from service.inference.entries import Running
from service.inference.latency_model import WINDOW, LatencyModel
from service.lanes import Lane

_SLACK: Final = 0.2
"""Throughput that background batches may lose to be shorter while interactive requests come: see docs/scheduling.md."""

_RECENT_S: Final = 10.0
"""Where no interactive work came for so long, background batches need not be short."""

_SPARE_AT_FIRST: Final = 256.0
"""Units of padding that a batch may have before the device's own overhead is known."""


class Pace:
    """Learns the pace of one device. Belongs to one event loop."""

    def __init__(self, max_batch: int, background_every: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_batch = max_batch
        self._background_every = background_every
        self._clock = clock
        self._models: dict[Work, LatencyModel] = {}
        self._waiting: dict[tuple[Work, Lane], int] = {}
        self._interactive_at = -_RECENT_S

    def limit(self, work: Work) -> int:
        """Largest number of rows in a batch."""
        return work.max_batch or self._max_batch

    def rules(self, work: Work) -> Rules:
        """What holds for the next batch of this work."""
        model = self._models.get(work)
        limit = self.limit(work)
        if model is None or model.fit is None or model.batches < WINDOW:
            return Rules(limit, spare=_SPARE_AT_FIRST, sizes=work.sizes)
        background = limit
        if work.length is None and self._clock() - self._interactive_at < _RECENT_S:
            background = model.fit.enough(limit, _SLACK)
        return Rules(limit, spare=model.fit.spare_units(), background_limit=background, sizes=work.sizes)

    def observe(self, work: Work, rows: int, units: float, seconds: float) -> None:
        """Take note of a batch that ran."""
        self._models.setdefault(work, LatencyModel()).observe(rows, units, seconds)

    def waits(self, work: Work, lane: Lane, rows: int) -> None:
        """Count rows that wait from now on; fewer where negative."""
        if lane is Lane.INTERACTIVE and rows > 0:
            self._interactive_at = self._clock()
        self._waiting[work, lane] = self._waiting.get((work, lane), 0) + rows

    def completion_s(self, work: Work, rows: int, lane: Lane, running: Iterable[Running]) -> float | None:
        """Seconds from now until `rows` of `work` would be done; None where its pace is not known.

        Args:
            work: which.
            rows: with those before them of the same work and lane, whether these are in the queue yet or not.
            lane: of the rows.
            running: what is on the device.
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
        """Time that background work takes in its turns: as many of the waiting batches as have one."""
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
