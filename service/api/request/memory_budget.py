"""Limits the bytes of request bodies and of unsent answers in memory, over all requests of a process.

A body counts from its first byte until its request is answered or dropped, because its image waits for decoding. No
request waits for memory: a body that does not fit is refused at once, so requests cannot deadlock, and a body within
its own limit always fits if it is the only one. Answers that their clients have not taken yet leave less for bodies.
"""

from service.api.problems.table import BodiesFull
from service.monitoring.metrics import Metrics

_RETRY_S = 2.0


class MemoryBudget:
    """Counts the body bytes of all requests of a process. Not thread-safe.

    Attributes:
        used_bytes: body bytes in memory.
        unsent_bytes: bytes of answers that wait for their clients; the server sets it.
    """

    def __init__(self, limit_bytes: int, metrics: Metrics) -> None:
        self.used_bytes = 0
        self.unsent_bytes = 0
        self._limit_bytes = limit_bytes
        self._metrics = metrics

    @property
    def crowded(self) -> bool:
        """Return whether more than half of the bytes are in use."""
        return self.used_bytes + self.unsent_bytes > self._limit_bytes / 2

    def check(self, more_bytes: int) -> None:
        """Raise `BodiesFull` if `more_bytes` do not fit."""
        if self.used_bytes + self.unsent_bytes + more_bytes > self._limit_bytes:
            self._metrics.bodies_refused.inc()
            raise BodiesFull("Too many bytes of requests are in memory; try again later.", _RETRY_S)

    def change(self, by_bytes: int) -> None:
        """Add bytes, or subtract them if negative."""
        self.used_bytes += by_bytes
        self._metrics.body_bytes.inc(by_bytes)


class BufferedBody:
    """The body bytes of one request, counted in a `MemoryBudget`. Its creator calls `release` when the request ends.

    Attributes:
        size_bytes: bytes counted for this request.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self.size_bytes = 0
        self._budget = budget

    def check_fits(self, size_bytes: int) -> None:
        """Raise `BodiesFull` if a body of this size does not fit now. Counts nothing.

        Counting announced bytes would let clients use up the budget without sending any.
        """
        self._budget.check(size_bytes)

    def add(self, size_bytes: int) -> None:
        """Count bytes that have arrived. Raises `BodiesFull`, and then counts nothing."""
        self._budget.check(size_bytes)
        self._budget.change(size_bytes)
        self.size_bytes += size_bytes

    def release(self) -> None:
        """Subtract everything that was added."""
        self._budget.change(-self.size_bytes)
        self.size_bytes = 0
