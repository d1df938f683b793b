"""How much may wait at once, and for how long. What does not fit is refused at once, before anything is spent on it."""

import time
from collections.abc import Callable
from typing import Final, Literal

from service.errors import Overloaded
from service.monitoring.metrics import Metrics

_SHORTEST_S: Final = 1.0
_LONGEST_S: Final = 60.0


class Place:
    """Room for some images or texts in the queue, until `leave`."""

    def __init__(self, admission: "Admission", size: int) -> None:
        self._admission = admission
        self._size = size

    def leave(self, size: int | None = None) -> None:
        """Give room back: `size` of it, or what is left; more than once does no harm."""
        freed = self._size if size is None else min(size, self._size)
        self._admission.occupied -= freed
        self._size -= freed


class Admission:
    """Counts what waits of one kind for one model.

    Attributes:
        occupied: images or texts that wait, including those that are still being prepared.
    """

    def __init__(
        self,
        model: str,
        kind: Literal["image", "text"],
        metrics: Metrics,
        *,
        limit: int,
        completion_s: Callable[[int], float | None],
        batch: int = 1,
    ) -> None:
        """Nothing waits yet.

        Args:
            model: name, for the metrics.
            kind: of what is counted.
            metrics: where refusals are counted.
            limit: of what waits at once.
            completion_s: seconds from now until so many images or texts, those that wait included, would be done;
                None where nothing is known of their pace yet.
            batch: of what enters at once, this much has to be done by its deadline. The rest of a large label set may
                follow later: what is done by then is kept, so that the next attempt goes further.
        """
        self.occupied = 0
        self._model = model
        self._kind = kind
        self._metrics = metrics
        self._limit = limit
        self._completion_s = completion_s
        self._batch = batch

    def enter(self, size: int = 1, *, deadline: float = float("inf")) -> Place:
        """Take room. What is larger than the limit by itself is let in where nothing else waits.

        Args:
            size: images or texts.
            deadline: on the clock of `time.monotonic`; what is not likely to be done by then is refused now.

        Raises:
            Overloaded: too much waits; with an estimate of when there is room.
        """
        self.check(size, deadline=deadline)
        self.occupied += size
        return Place(self, size)

    def check(self, size: int = 1, *, deadline: float = float("inf")) -> None:
        """Raise `Overloaded` where `enter` would."""
        things = "images" if self._kind == "image" else "new texts"
        if self.occupied and self.occupied + size > self._limit:
            self._metrics.overloaded.labels(self._model, self._kind).inc()
            raise Overloaded(f"Too many {things} are waiting; try again later.", self.retry_after_s())
        # Where nothing is ahead it is let in whatever the estimate says, which would otherwise never be put right.
        if deadline == float("inf") or not size or not self._completion_s(self.occupied):
            return
        late_s = time.monotonic() + (self._completion_s(self.occupied + min(size, self._batch)) or 0.0) - deadline
        if late_s > 0:
            self._metrics.overloaded.labels(self._model, self._kind).inc()
            message = f"Too many {things} are waiting to be answered in time; try again later."
            raise Overloaded(message, min(max(late_s, _SHORTEST_S), _LONGEST_S))

    def retry_after_s(self) -> float:
        """Time until what waits now is done, in seconds, 1 to 60."""
        estimate = self._completion_s(self.occupied)
        return min(max(estimate or 0.0, _SHORTEST_S), _LONGEST_S)
