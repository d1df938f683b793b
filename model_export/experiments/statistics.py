"""Means with standard errors, the pairs that lead to an accuracy, and a straight line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NEVER = "–"
"""Shown for an accuracy that an arm never reaches, and for what follows from it."""


class Estimate(NamedTuple):
    """A mean over seeds and its standard error."""

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate from two or more values."""
        return cls(float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(len(values))))

    def percent(self) -> str:
        """Return ``12.3 ± 0.4``, in per cent."""
        return f"{100 * self.mean:.1f} ± {100 * self.error:.1f}"


def difference(some: Sequence[float], other: Sequence[float]) -> Estimate:
    """Return the mean of ``some`` less ``other``, seed by seed, with its standard error."""
    return Estimate.of([a - b for a, b in zip(some, other, strict=True)])


def pairs_to_reach(accuracy: float, budgets: Sequence[int], accuracies: Sequence[float]) -> float | None:
    """Return the pairs that lead to an accuracy, interpolated over the logarithm of the budgets; None for never.

    It is the budget itself where the smallest reaches it: fewer were not measured.
    """
    for number, (budget, reached) in enumerate(zip(budgets, accuracies, strict=True)):
        if reached < accuracy:
            continue
        if number == 0:
            return float(budget)
        before, lower = budgets[number - 1], accuracies[number - 1]
        share = (accuracy - lower) / (reached - lower)
        return float(before * (budget / before) ** share)
    return None


class Line(NamedTuple):
    """A straight line, and the share of the variance that it explains."""

    slope: float
    intercept: float
    r_squared: float


def line_through(places: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> Line:
    """Fit a line by least squares through two or more points; R² is 0 if all values are equal."""
    slope, intercept = np.polyfit(places, values, 1)
    rest, spread = np.sum((values - slope * places - intercept) ** 2), np.sum((values - values.mean()) ** 2)
    return Line(float(slope), float(intercept), float(1 - rest / spread) if spread else 0.0)
