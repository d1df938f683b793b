"""Places of batch requests, which one that waits for its client leaves to others."""

from collections.abc import Iterator
from contextlib import contextmanager


class BatchPlaces:
    """Admits batch requests: up to `limit` that work, and up to twice as many that are open. Not thread-safe.

    A batch works while its labels or images do. Otherwise it waits for its client to read or to send, and keeps others
    out only if `limit` of them wait.
    """

    def __init__(self, limit: int) -> None:
        self.open = 0
        self.working = 0
        self._limit = limit

    @property
    def free(self) -> bool:
        """Return whether one more batch may begin."""
        return self.working < self._limit and self.open < 2 * self._limit

    @property
    def crowded(self) -> bool:
        """Return whether batches are open that would find no place if all worked."""
        return self.open > self._limit

    @contextmanager
    def opened(self) -> Iterator["BatchPlace"]:
        """Count a batch until the end of the block."""
        self.open += 1
        try:
            yield BatchPlace(self)
        finally:
            self.open -= 1


class BatchPlace:
    """The place of one batch."""

    def __init__(self, places: BatchPlaces) -> None:
        self._places = places
        self._at_work = 0

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Count a part of the batch's work; any number of parts takes one place."""
        self._at_work += 1
        if self._at_work == 1:
            self._places.working += 1
        try:
            yield
        finally:
            self._at_work -= 1
            if not self._at_work:
                self._places.working -= 1
