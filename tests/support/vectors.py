from typing import Any

import numpy as np

from service.monitoring.metrics import Metrics

DIM = 4


def vector(value: float = 1.0, dim: int = DIM) -> Any:
    """Return a constant vector."""
    return np.full(dim, value, np.float32)


def lists(found: list[Any]) -> list[Any]:
    """Return vectors as lists, for comparison."""
    return [None if one is None else one.tolist() for one in found]


def count(metrics: Metrics, name: str, **labels: str) -> float:
    """Return a metric's value, 0 if it has none yet."""
    return metrics.registry.get_sample_value(name, labels) or 0.0
