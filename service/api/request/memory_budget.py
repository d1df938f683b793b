"""How many bytes of request bodies may be in memory, over all requests together.

A body is held from its first byte until its request is answered or given up, for the picture in it waits for its turn
to be decoded. Nothing waits for room: what does not fit is refused at once, so nobody can be locked up with anybody
else, and a body within its own limit always fits where there is no other.
"""

from service.api.problems.table import BodiesFull
from service.monitoring.metrics import Metrics

_RETRY_S = 2.0


class BodyRoom:
    """The room for the bodies of all requests of a process. Not for several threads.

    Attributes:
        held_bytes: what is taken of it.
    """

    def __init__(self, limit_bytes: int, metrics: Metrics) -> None:
        self.held_bytes = 0
        self._limit_bytes = limit_bytes
        self._metrics = metrics

    def hold(self) -> "HeldBody":
        """The share of one request, which is empty at first."""
        return HeldBody(self)

    def check(self, more_bytes: int) -> None:
        """Raise `BodiesFull` where so many bytes more do not fit."""
        if self.held_bytes + more_bytes > self._limit_bytes:
            self._metrics.bodies_refused.inc()
            raise BodiesFull("Too many bytes of requests are in memory here; try again later.", _RETRY_S)

    def change(self, by_bytes: int) -> None:
        """Take or give back."""
        self.held_bytes += by_bytes
        self._metrics.body_bytes.inc(by_bytes)


class HeldBody:
    """What one request has taken of the room. Whoever has made it calls `release`, however the request ends.

    Attributes:
        held_bytes: how much that is.
    """

    def __init__(self, room: BodyRoom) -> None:
        self.held_bytes = 0
        self._room = room

    def expect(self, size_bytes: int) -> None:
        """Look whether a body of this size would fit now. Raises `BodiesFull`; takes nothing.

        To take what is only promised would let clients fill the room without sending a byte.
        """
        self._room.check(size_bytes)

    def add(self, size_bytes: int) -> None:
        """Take room for what has arrived. Raises `BodiesFull`, and then takes nothing."""
        self._room.check(size_bytes)
        self._room.change(size_bytes)
        self.held_bytes += size_bytes

    def release(self) -> None:
        """Give everything back."""
        self._room.change(-self.held_bytes)
        self.held_bytes = 0
