"""How much may wait at once. What does not fit is refused at once, before anything is spent on it."""

from collections.abc import Callable
from typing import Final, Literal

from service.errors import Overloaded
from service.metrics import Metrics

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
        rate: Callable[[], float | None],
    ) -> None:
        """`rate` gives images or texts a second of late, or None before the first."""
        self.occupied = 0
        self._model = model
        self._kind = kind
        self._metrics = metrics
        self._limit = limit
        self._rate = rate

    def enter(self, size: int = 1) -> Place:
        """Take room. What is larger than the limit by itself is let in where nothing else waits.

        Raises:
            Overloaded: too much waits; with an estimate of when there is room.
        """
        self.check(size)
        self.occupied += size
        return Place(self, size)

    def check(self, size: int = 1) -> None:
        """Raise `Overloaded` where `enter` would."""
        if self.occupied and self.occupied + size > self._limit:
            self._metrics.overloaded.labels(self._model, self._kind).inc()
            things = "images" if self._kind == "image" else "new texts"
            raise Overloaded(f"Too many {things} are waiting; try again later.", self.retry_after_s())

    def retry_after_s(self) -> float:
        """Time until what waits now is done, in seconds, 1 to 60."""
        rate = self._rate()
        estimate = self.occupied / rate if rate else _SHORTEST_S
        return min(max(estimate, _SHORTEST_S), _LONGEST_S)
