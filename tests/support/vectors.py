from typing import Any

import numpy as np

from service.monitoring.metrics import Metrics

DIM = 4


def vector(value: float = 1.0, dim: int = DIM) -> Any:
    """Return a unit vector, one for each value: `value` and then ones, normalised."""
    vector = np.ones(dim, np.float32)
    vector[0] = value
    return vector / np.linalg.norm(vector)


def lists(found: list[Any]) -> list[Any]:
    """Return vectors as lists, for comparison."""
    return [None if one is None else one.tolist() for one in found]


def count(metrics: Metrics, name: str, **labels: str) -> float:
    """Return a metric's value, 0 if it has none yet."""
    return metrics.registry.get_sample_value(name, labels) or 0.0
