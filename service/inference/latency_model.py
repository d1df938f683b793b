"""Models the time of a batch, `slope · units + overhead` seconds, from the batches that ran.

A unit is an image, or a token of a text, padding included. The fit uses medians, as that of Theil (1950) and Sen
(1968), so that a slow first run or a busy moment does not bend it. It uses the last `WINDOW` batches, so that it
follows a machine that becomes slower or faster.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

WINDOW: Final = 32
"""Batches remembered."""

_EVIDENCE: Final = 3
"""Small and large batches needed of each to separate overhead from slope: one of them may be far off."""

_REFIT: Final = 8
"""Batches between two fits once the window is full: one in 32 moves no median, and a fit costs as much as all other
work for a single request."""

_SHORTEST_S: Final = 1e-6
_LENGTH_MEMORY: Final = 0.8
"""Weight of the past in the units of a row; it settles within about ten batches."""


@dataclass(frozen=True, slots=True)
class Fit:
    """`slope_s` a unit and `overhead_s` a batch, in seconds, neither negative and not both zero."""

    slope_s: float
    overhead_s: float

    def seconds(self, units: float) -> float:
        """Return the time of a batch of so many units; 0 for none."""
        return self.slope_s * units + self.overhead_s if units > 0 else 0.0

    def spare_units(self) -> float:
        """Return the units that cost as much as the overhead of a batch: more padding is dearer than a second batch."""
        return self.overhead_s / self.slope_s if self.slope_s > 0 else float("inf")

    def enough(self, most: int, slack: float) -> int:
        """Return the smallest batch that takes at most `1 + slack` times as long a unit as one of `most` units."""
        allowed = (1 + slack) * self.seconds(most) / most - self.slope_s
        return min(most, max(1, int(np.ceil(self.overhead_s / allowed)))) if allowed > 0 else most


class LatencyModel:
    """Learns from each batch. Belongs to one thread."""

    def __init__(self) -> None:
        self.batches = 0
        self.units_per_row = 1.0
        self._units: deque[float] = deque(maxlen=WINDOW)
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._overhead_s = 0.0
        self._fit: Fit | None = None

    def observe(self, rows: int, units: float, seconds: float) -> None:
        """Record a batch that ran: `rows` above 0 of `units` in all."""
        per_row = units / rows
        self.units_per_row = (
            per_row if not self.batches else _LENGTH_MEMORY * self.units_per_row + (1 - _LENGTH_MEMORY) * per_row
        )
        self.batches += 1
        self._units.append(units)
        self._seconds.append(max(seconds, _SHORTEST_S))
        if self.batches <= WINDOW or self.batches % _REFIT == 0:
            self._fit = None

    @property
    def fit(self) -> Fit | None:
        """The fit to the batches seen; None before the first."""
        if self._fit is None and self._units:
            self._fit = self._fitted()
            self._overhead_s = self._fit.overhead_s
        return self._fit

    def seconds(self, rows: int, limit: int) -> float | None:
        """Return the time of so many rows in batches of `limit`, at the recent units a row; None before the first."""
        fit = self.fit
        if fit is None:
            return None
        full, rest = divmod(rows, limit)
        return full * fit.seconds(limit * self.units_per_row) + fit.seconds(rest * self.units_per_row)

    def _fitted(self) -> Fit:
        units, seconds = np.array(self._units), np.array(self._seconds)
        large = units > (units.min() + units.max()) / 2
        if min(large.sum(), (~large).sum()) >= _EVIDENCE and units.max() >= 2 * units.min():
            rises = (seconds[large][:, None] - seconds[~large]) / (units[large][:, None] - units[~large])
            slope = float(np.median(rises))
            overhead = float(np.median(seconds - slope * units))
            if slope >= 0 and overhead >= 0:
                return Fit(slope, overhead)
            overhead = 0.0
        else:
            # Batches of one size show only their own time, so the overhead is that of the last fit.
            overhead = min(self._overhead_s, float(np.median(seconds)) / 2)
        return Fit(float(np.median(np.maximum(seconds - overhead, _SHORTEST_S) / units)), overhead)
