"""Plan the batches of a run: a pure function of seed, step and row-group sizes.

Nothing here reads data. A row of a batch, and the random stream that prepares it, follow from the step and the position
within the batch alone. So batches are the same with any number of loading workers or ranks, and a resumed run continues
with exactly the next batch.

Memory grows with the row groups and with the rows of one window, not with the rows of the data: an epoch's order is
never laid out as a whole. See docs/adr/0024-plans-without-arrays.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from model_export.data.held_out import trained_before, trained_row
from model_export.data.pairs import RowGroups, Rows

# Random streams of a run besides those of its rows, which have no spawn key.
_ORDER, _WINDOW, _REPLACEMENT = range(3)


@dataclass(frozen=True)
class BatchPlan:
    """One batch to load, or a rank's part of it.

    Attributes:
        step: its step.
        start: position of its first row within the whole batch.
        rows: global row numbers, int64 ``[rows]``.
        epoch: the pass over the data, from 0.
        image_size: side of its images, in pixels.
        zoom_share: share of its images to zoom.
    """

    step: int
    start: int
    rows: Rows
    epoch: int
    image_size: int
    zoom_share: float


@dataclass(frozen=True)
class Phase:
    """From the fraction ``start`` of the run on, train at ``size`` pixels and zoom ``zoom_share`` of the images."""

    start: float
    size: int
    zoom_share: float = 0.0


class _Epoch(NamedTuple):
    order: Rows
    """The row groups of all windows, one window after another."""
    bounds: Rows
    """Position of each window's first row within the epoch, and of the end."""


class TrainingPlan:
    """Plans the batches of a run; drops partial batches.

    An epoch puts the row groups into a random order, and shuffles the rows of ``window`` neighbouring groups: a reader
    needs only that many in memory, however large the data.

    Attributes:
        batch_size: rows of a whole batch.
        train_rows: rows that are trained on.
        steps_per_epoch: whole batches of an epoch.
        total_steps: of the run.
    """

    def __init__(
        self,
        groups: RowGroups,
        *,
        held_out_every: int,
        seed: int,
        batch_size: int,
        epochs: int,
        window: int,
        phases: Sequence[Phase],
    ) -> None:
        self._groups = groups
        self._every = held_out_every
        self._seed = seed
        self._window = window
        self._phases = sorted(phases, key=lambda phase: phase.start)
        offset = groups.first - groups.first_of_file(groups.first)
        self._trained = trained_before(offset + groups.rows, held_out_every) - trained_before(offset, held_out_every)
        self.batch_size = batch_size
        self.train_rows = int(self._trained.sum())
        self.steps_per_epoch = self.train_rows // batch_size
        self.total_steps = self.steps_per_epoch * epochs
        self._epochs: dict[int, _Epoch] = {}
        self._windows: dict[tuple[int, int], Rows] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_epochs": {}, "_windows": {}}

    def phase(self, step: int) -> Phase:
        """Return the phase of ``step``."""
        fraction = step / max(1, self.total_steps)
        return [phase for phase in self._phases if phase.start <= fraction][-1]

    def batch(self, step: int, *, start: int = 0, stop: int | None = None) -> BatchPlan:
        """Plan the rows of a step at the positions from ``start`` to ``stop`` of its batch; all of them by default.

        Rank r of N takes the positions from ``r * batch_size / N`` to ``(r + 1) * batch_size / N``.
        """
        epoch, batch = divmod(step, self.steps_per_epoch)
        first, end = (batch * self.batch_size + at for at in (start, self.batch_size if stop is None else stop))
        bounds = self._epoch(epoch).bounds
        parts = []
        at = first
        while at < end:
            window = _window_at(bounds, at)
            begin = int(bounds[window])
            until = min(end, int(bounds[window + 1]))
            parts.append(self.window(epoch, window)[at - begin : until - begin])
            at = until
        rows = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        phase = self.phase(step)
        return BatchPlan(step, start, rows, epoch, phase.size, phase.zoom_share)

    def replacement(self, step: int, position: int, attempt: int) -> int:
        """Return the row that stands in for an unusable one, a function of its place: another of the same window.

        Args:
            step: of the batch.
            position: within the whole batch.
            attempt: from 0; counts on if the replacement is unusable too.
        """
        epoch, batch = divmod(step, self.steps_per_epoch)
        window = _window_at(self._epoch(epoch).bounds, batch * self.batch_size + position)
        rows = self.window(epoch, window)
        return int(rows[self._rng(_REPLACEMENT, step, position, attempt).integers(len(rows))])

    def stream(self, step: int, position: int) -> np.random.Generator:
        """Return the random stream of one row: of its augmentation and its caption."""
        return np.random.default_rng([self._seed, step, position])

    def windows(self, epoch: int) -> Iterator[Rows]:
        """Yield the rows of an epoch in their order, a window at a time."""
        for window in range(len(self._epoch(epoch).bounds) - 1):
            yield self.window(epoch, window)

    def window(self, epoch: int, window: int) -> Rows:
        """Return the shuffled rows of one window of an epoch."""
        if (epoch, window) not in self._windows:
            chosen = self._epoch(epoch).order[window * self._window : (window + 1) * self._window]
            count = self._trained[chosen]
            first = self._groups.first[chosen]
            of_file = self._groups.first_of_file(first)
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            index = np.repeat(trained_before(first - of_file, self._every), count) + within
            rows = np.repeat(of_file, count) + trained_row(index, self._every)
            self._rng(_WINDOW, epoch, window).shuffle(rows)
            # A batch may reach into the next window; no more are in use at a time.
            _keep_last(self._windows, 2)
            self._windows[epoch, window] = rows
        return self._windows[epoch, window]

    def _epoch(self, epoch: int) -> _Epoch:
        if epoch not in self._epochs:
            order = self._rng(_ORDER, epoch).permutation(len(self._trained))
            sizes = np.add.reduceat(self._trained[order], np.arange(0, len(order), self._window))
            _keep_last(self._epochs, 2)
            self._epochs[epoch] = _Epoch(order, np.concatenate([[0], np.cumsum(sizes)]))
        return self._epochs[epoch]

    def _rng(self, *key: int) -> np.random.Generator:
        # A spawn key keeps these streams apart from those of rows: plain entropy is padded with zeros.
        return np.random.default_rng(np.random.SeedSequence(self._seed, spawn_key=key))


def _window_at(bounds: npt.NDArray[np.int64], position: int) -> int:
    return int(np.searchsorted(bounds, position, side="right")) - 1


def _keep_last(cache: dict[Any, Any], most: int) -> None:
    """Make room for one more entry."""
    while len(cache) >= most:
        del cache[next(iter(cache))]
