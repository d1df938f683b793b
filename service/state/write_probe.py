"""Tries a write now and then: a full or read-only store still answers every read."""

import time
from collections.abc import Callable
from typing import Final

from service.state.protocol import StateStore

PROBE_S: Final = 60.0
"""Interval of tried writes in the service."""


class WriteProbe:
    """Proves that a store takes writes, at most every `every_s` while all is well."""

    def __init__(self, state: StateStore, *, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._state = state
        self._every_s = every_s
        self._clock = clock
        self._due = -float("inf")

    def doubt(self) -> None:
        """Make the next check try a write, because one has failed."""
        self._due = -float("inf")

    async def check(self) -> None:
        """Try a write if it is time, or if the last one failed. Raises StateUnavailable if it fails."""
        if self._clock() >= self._due:
            await self._state.prove_writable()
            self._due = self._clock() + self._every_s
