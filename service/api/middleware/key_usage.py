"""Counts requests and their work by the name of the API key."""

from typing import Final

from service.monitoring.metrics import Metrics
from service.monitoring.usage import Usage

MAX_KEYS: Final = 200
OTHER_KEYS: Final = "(other)"
"""Name in the metrics of all keys after the first `MAX_KEYS` of a process; no key can have it."""


class KeyUsage:
    """Counts by names that the operator has chosen; a file with thousands of keys makes no thousands of series."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._names: set[str] = set()

    def count(self, name: str, status_class: str, usage: Usage) -> None:
        """Count a request with the key `name` that was answered with a status such as ``2xx``."""
        if name not in self._names:
            if len(self._names) < MAX_KEYS:
                self._names.add(name)
            else:
                name = OTHER_KEYS
        self._metrics.key_requests.labels(name, status_class).inc()
        self._metrics.key_images.labels(name).inc(usage.images)
        self._metrics.key_labels.labels(name).inc(usage.labels)
