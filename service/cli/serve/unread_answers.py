"""Gives up clients that take nothing of their answers, and counts the bytes that wait for them.

An answer is written to the transport in one piece or in many, and the transport keeps the bytes that the kernel does
not accept. Closing a connection waits for them, so only `abort` ends that of a client that does not read. One look at
all connections, four times a second, covers every kind of answer and costs a request nothing.
"""

import asyncio
import fcntl
import struct
import termios
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol

import structlog

from service.api.request.memory_budget import MemoryBudget
from service.monitoring.metrics import Metrics

EVERY_S: Final = 0.25
PRESSED_LIMIT_S: Final = 5.0
PRESSED_BYTES: Final = 65_536

_log = structlog.stdlib.get_logger("service.server")


class Connection(Protocol):
    """A connection, as its HTTP protocol shows it."""

    @property
    def unsent_bytes(self) -> int:
        """Return the bytes of answers that the transport holds."""

    @property
    def moved_bytes(self) -> int:
        """Return the bytes of answers that the client has taken, and of bodies that it has sent."""

    def abort(self) -> None:
        """End the connection and drop the unsent bytes."""


class UnreadAnswers:
    """Watches connections with unsent bytes.

    A client has `limit_s` for its next byte. While `pressed` returns True, because memory or places are short or the
    service stops, it has `PRESSED_LIMIT_S` for `PRESSED_BYTES`. A byte of its body counts too: a client may send a
    whole archive before it reads a line.
    """

    def __init__(
        self,
        connections: Iterable[Connection],
        budget: MemoryBudget,
        metrics: Metrics,
        *,
        limit_s: float,
        pressed: Callable[[], bool],
    ) -> None:
        self._connections = connections
        self._budget = budget
        self._metrics = metrics
        self._limit_s = limit_s
        self._pressed = pressed
        # Bytes moved, and the looks since. Looks, not seconds: if the event loop is late, so are the writes.
        self._progress: dict[Connection, tuple[int, int]] = {}

    async def watch(self) -> None:
        """Look at all connections until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(EVERY_S)

    def look(self) -> None:
        """Count the unsent bytes, and abort connections whose clients have taken too little for too long."""
        waiting = [(connection, size) for connection in self._connections if (size := connection.unsent_bytes)]
        unsent = sum(size for _, size in waiting)
        if unsent != self._budget.unsent_bytes:
            self._budget.unsent_bytes = unsent
            self._metrics.unsent_bytes.set(unsent)
        limit_s, least = self._limit_s, 1
        if waiting and self._pressed():
            limit_s, least = min(limit_s, PRESSED_LIMIT_S), PRESSED_BYTES
        progress: dict[Connection, tuple[int, int]] = {}
        for connection, size in waiting:
            moved = connection.moved_bytes
            before, looks = self._progress.get(connection, (moved, -1))
            if moved - before >= least:
                progress[connection] = moved, 0
            elif (looks + 1) * EVERY_S < limit_s:
                progress[connection] = before, looks + 1
            else:
                self._give_up(connection, size)
        self._progress = progress

    def _give_up(self, connection: Connection, size: int) -> None:
        _log.info("a client does not read its answer; its connection is closed", unsent_bytes=size)
        self._metrics.answers_unread.inc()
        connection.abort()


def unacknowledged_bytes(transport: Any) -> int:  # noqa: ANN401 - uvloop's transports are no subclasses of asyncio's
    """Return the bytes that the kernel holds because the client has not acknowledged them; 0 if unknown.

    Without them a slow client would seem to take nothing: the kernel asks for more only when a third of its buffer, up
    to megabytes, is free.
    """
    try:
        descriptor = transport.get_extra_info("socket").fileno()
        (size,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))
    except (AttributeError, OSError):
        return 0
    return int(size)
