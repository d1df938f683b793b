"""Plan the batches of a run: a pure function of seed, epoch and row-group sizes.

Nothing here reads data. A batch's rows and random seed follow from its step alone, so batches are the same with any
number of loading workers, and a resumed run continues with exactly the next batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class BatchPlan:
    """One batch to load.

    Attributes:
        step: its step.
        rows: global row numbers, int64 ``[batch]``.
        epoch: the pass over the data, from 0.
        seed: drives augmentation and captions.
        image_size: side of its images, in pixels.
        zoom_share: share of its images to zoom.
    """

    step: int
    rows: npt.NDArray[np.int64]
    epoch: int
    seed: tuple[int, int]
    image_size: int
    zoom_share: float


def epoch_order(
    groups: Sequence[npt.NDArray[np.int64]], *, seed: int, epoch: int, window: int
) -> npt.NDArray[np.int64]:
    """Shuffle one epoch for streaming.

    Puts the row groups into a random order, and shuffles rows among ``window`` neighbouring groups: a reader needs
    only that many in memory, however large the data.

    Args:
        groups: for each row group, its global row numbers, int64 ``[rows]``.
        seed: the run's seed.
        epoch: from 0.
        window: row groups shuffled together, at least 1.

    Returns:
        All rows of all groups, int64 ``[sum of rows]``.
    """
    rng = np.random.default_rng([seed, 0, epoch])
    order = rng.permutation(len(groups))
    parts = []
    for start in range(0, len(order), window):
        rows = np.concatenate([groups[index] for index in order[start : start + window]])
        rng.shuffle(rows)
        parts.append(rows)
    return np.concatenate(parts)


@dataclass(frozen=True)
class Phase:
    """From the fraction ``start`` of the run on, train at ``size`` pixels and zoom ``zoom_share`` of the images."""

    start: float
    size: int
    zoom_share: float = 0.0


class TrainingPlan:
    """Plans the batches of a run; drops partial batches."""

    def __init__(
        self,
        groups: Sequence[npt.NDArray[np.int64]],
        *,
        seed: int,
        batch_size: int,
        epochs: int,
        window: int,
        phases: Sequence[Phase],
    ) -> None:
        self._groups = [group for group in groups if len(group)]
        self._seed = seed
        self._batch_size = batch_size
        self._window = window
        self._phases = sorted(phases, key=lambda phase: phase.start)
        self.steps_per_epoch = sum(len(group) for group in self._groups) // batch_size
        self.total_steps = self.steps_per_epoch * epochs

    def phase(self, step: int) -> Phase:
        """Return the phase of ``step``."""
        fraction = step / max(1, self.total_steps)
        return [phase for phase in self._phases if phase.start <= fraction][-1]

    def batches(self, first_step: int = 0) -> Iterator[BatchPlan]:
        """Yield the plan of each step from ``first_step`` to the end of the run."""
        order = np.empty(0, dtype=np.int64)
        epoch = -1
        for step in range(first_step, self.total_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = epoch_order(self._groups, seed=self._seed, epoch=epoch, window=self._window)
            start = (step % self.steps_per_epoch) * self._batch_size
            rows = order[start : start + self._batch_size]
            phase = self.phase(step)
            yield BatchPlan(step, rows, epoch, (self._seed, step), phase.size, phase.zoom_share)
