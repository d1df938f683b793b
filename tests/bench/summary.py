"""Summarise many runs: percentiles, medians."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Final

PERCENTILES: Final = (50, 90, 95, 99)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return mean, p50, p90, p95, p99 and max of `values`, in their unit; empty for none.

    A percentile is the smallest value that at least so many per cent of the values do not exceed (nearest rank).
    """
    if not values:
        return {}
    ordered = sorted(values)
    found = {"mean": statistics.fmean(ordered), "max": ordered[-1]}
    for percent in PERCENTILES:
        rank = -(-percent * len(ordered) // 100)  # rounded up
        found[f"p{percent}"] = ordered[max(0, rank - 1)]
    return found


def median(values: Iterable[float | None]) -> float | None:
    """Return the median of the values that are not None; None if all are."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def ratio(over: float | None, under: float | None) -> float | None:
    """Return the quotient, or None if a value is missing or the divisor is 0."""
    return over / under if over is not None and under else None
