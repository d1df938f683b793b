"""Skips damaged entries of the state store where others must not suffer: in lists, sweeps and the search for work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from service.errors import StateCorrupt
from service.monitoring.metrics import Metrics, StateEntry

_MAX_KNOWN: Final = 10_000
"""Number of damaged entries that are told apart; beyond it, further ones are skipped without a word."""

_log = structlog.stdlib.get_logger("service.state")


class DamagedEntries:
    """Skips damaged entries, and reports each once in the log and in the metric `state_damaged`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._known: set[str] = set()

    @contextmanager
    def skipped(self, kind: StateEntry) -> Iterator[None]:
        """End the block at StateCorrupt and go on after it."""
        try:
            yield
        except StateCorrupt as exc:
            if exc.detail not in self._known and len(self._known) < _MAX_KNOWN:
                self._known.add(exc.detail)
                self._metrics.state_damaged.labels(kind).inc()
                _log.error("a damaged entry of the state store is skipped", kind=kind, reason=exc.detail)
