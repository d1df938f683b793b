"""Limits the work that waits, by amount and by deadline; refuses the rest before any work is spent on it."""

import time
from collections.abc import Callable
from typing import Final

from service.errors import Overloaded
from service.monitoring.metrics import Kind, Metrics

_SHORTEST_S: Final = 1.0
_LONGEST_S: Final = 60.0


class Reservation:
    """Capacity reserved in the queue for some images or texts, until `release`."""

    def __init__(self, admission: "Admission", size: int) -> None:
        self._admission = admission
        self._size = size

    def release(self, size: int | None = None) -> None:
        """Release `size` of it, or the rest if None. A repeated call has no effect."""
        freed = self._size if size is None else min(size, self._size)
        self._admission.occupied -= freed
        self._size -= freed


class Admission:
    """Counts the waiting images, or texts, of one model.

    Attributes:
        occupied: images or texts that wait, including those still being decoded or tokenised.
    """

    def __init__(
        self,
        model: str,
        kind: Kind,
        metrics: Metrics,
        *,
        limit: int,
        completion_s: Callable[[int], float | None],
        batch: int = 1,
    ) -> None:
        """Start empty.

        Args:
            limit: images or texts that may wait at once.
            completion_s: seconds until so many images or texts, the waiting ones included, would be done; None before
                the first batch.
            batch: only so much of one request has to be done by its deadline. The rest of a large label set may follow
                later: vectors done by then are kept, so that the next attempt gets further.
        """
        self.occupied = 0
        self._model = model
        self._kind = kind
        self._metrics = metrics
        self._limit = limit
        self._completion_s = completion_s
        self._batch = batch

    def reserve(self, size: int = 1, *, deadline: float = float("inf")) -> Reservation:
        """Reserve capacity. A request above the limit is admitted if the queue is empty.

        Args:
            size: images or texts.
            deadline: on the clock of `time.monotonic`; work that is not likely to be done by then is refused now.

        Raises:
            Overloaded: too much waits; with the estimated time until it does not.
        """
        self.check(size, deadline=deadline)
        self.occupied += size
        return Reservation(self, size)

    def check(self, size: int = 1, *, deadline: float = float("inf")) -> None:
        """Raise `Overloaded` as `reserve` would."""
        things = "images" if self._kind == "image" else "new texts"
        if self.occupied and self.occupied + size > self._limit:
            self._metrics.overloaded.labels(self._model, self._kind).inc()
            raise Overloaded(f"Too many {things} are waiting; try again later.", self.retry_after_s())
        # An idle device admits work whatever the estimate says: without a batch a wrong estimate is never corrected.
        if deadline == float("inf") or not size or not self._completion_s(self.occupied):
            return
        late_s = time.monotonic() + (self._completion_s(self.occupied + min(size, self._batch)) or 0.0) - deadline
        if late_s > 0:
            self._metrics.overloaded.labels(self._model, self._kind).inc()
            message = f"Too many {things} are waiting to be answered in time; try again later."
            raise Overloaded(message, min(max(late_s, _SHORTEST_S), _LONGEST_S))

    def retry_after_s(self) -> float:
        """Return the seconds until the waiting work is done, 1 to 60."""
        estimate = self._completion_s(self.occupied)
        return min(max(estimate or 0.0, _SHORTEST_S), _LONGEST_S)
