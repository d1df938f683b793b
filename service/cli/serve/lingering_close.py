"""Lingering close: a client that is still sending gets its answer before the connection ends (RFC 9112, section 9.6).

A request may be refused before its body has arrived: without a key, or because the body is too large. If the
connection were closed at that moment, the kernel would reset it, and the reset may overtake the answer: the client
would see a broken connection. So the server ends its side of the stream after the answer, and reads and discards for a
while what the client still sends.
"""

import asyncio
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.cli.serve.unread_answers import unacknowledged_bytes

IDLE_S: Final = 2.0
"""A client that is silent for this time has seen the end of the stream, or is gone."""
MAX_LINGER_S: Final = 30.0
_DISCARD_EVERY_S: Final = 0.005
"""Time between two reads of bytes that are discarded, each of up to 256,000 bytes.

Without a pause uvloop reads 32 times from one connection before it serves others.
"""


class LingeringProtocol(HttpToolsProtocol):
    """Uvicorn's HTTP protocol with a lingering close for requests that have not arrived completely.

    Attributes:
        body_bytes: bytes of bodies that have arrived on this connection.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Wrap the transport."""
        self.body_bytes = 0
        self._lingering = _LingeringTransport(transport, self)
        super().connection_made(cast("asyncio.Transport", self._lingering))

    def data_received(self, data: bytes) -> None:
        """Parse data; discard it while lingering."""
        if self._lingering.active:
            self._lingering.received_data = True
            self._lingering.pause_discarding()
        else:
            super().data_received(data)

    def on_body(self, body: bytes) -> None:
        """Keep a part of a body; discard one that comes after the answer, without haste."""
        super().on_body(body)
        if self.cycle.response_complete:
            self._lingering.pause_discarding()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop lingering."""
        self._lingering.cancel_timer()
        super().connection_lost(exc)

    @property
    def unsent_bytes(self) -> int:
        """Return the bytes of answers that the transport holds."""
        return self._lingering.get_write_buffer_size()

    @property
    def moved_bytes(self) -> int:
        """Return the bytes of answers that the client has taken, and of bodies that it has sent."""
        transport = self._lingering
        taken = transport.written_bytes - transport.get_write_buffer_size() - unacknowledged_bytes(transport)
        return taken + self.body_bytes

    def abort(self) -> None:
        """End the connection and drop the unsent bytes."""
        self._lingering.abort()

    def shutdown(self) -> None:
        """Close the connection, unless it lingers: then its timer closes it."""
        if not self._lingering.active:
            super().shutdown()


class _LingeringTransport:
    """A transport whose `close` lingers while the client is still sending; all else is the wrapped transport's.

    Attributes:
        active: whether it is lingering.
        received_data: whether the client has sent anything since this was last set to False.
        written_bytes: bytes given to `write`.
    """

    def __init__(self, transport: asyncio.Transport, protocol: HttpToolsProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._timer: asyncio.TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None
        self.active = False
        self.received_data = False
        self.written_bytes = 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the transport's
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """See `asyncio.WriteTransport`."""
        self.written_bytes += len(data)
        self._transport.write(data)

    def get_write_buffer_size(self) -> int:
        """See `asyncio.WriteTransport`."""
        return self._transport.get_write_buffer_size()

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport`."""
        return self.active or self._transport.is_closing()

    def close(self) -> None:
        """See `asyncio.BaseTransport`."""
        # None before the first request, despite uvicorn's annotation.
        cycle = cast("RequestResponseCycle | None", self._protocol.cycle)
        sending = cycle is not None and cycle.response_complete and cycle.more_body
        if self.active or not sending or self._transport.is_closing() or not self._transport.can_write_eof():
            self.cancel_timer()
            self._transport.close()
            return
        self.active = True
        self._transport.write_eof()
        # Reading may be paused because the application did not ask for the body.
        self._transport.resume_reading()
        loop = self._protocol.loop
        self._timer = loop.call_later(IDLE_S, self._close_if_idle, loop.time() + MAX_LINGER_S)

    def pause_discarding(self) -> None:
        """Read no more for a moment, so that discarding takes a small part of the processor."""
        if self._pause is None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._pause = self._protocol.loop.call_later(_DISCARD_EVERY_S, self._discard_more)

    def cancel_timer(self) -> None:
        """Cancel the pending close, and the end of a pause."""
        for timer in (self._timer, self._pause):
            if timer is not None:
                timer.cancel()
        self._timer = self._pause = None

    def _discard_more(self) -> None:
        self._pause = None
        # The next request on the connection may have filled its buffer meanwhile; `flow` then resumes.
        if not self._transport.is_closing() and (self.active or not self._protocol.flow.read_paused):
            self._transport.resume_reading()

    def _close_if_idle(self, deadline: float) -> None:
        loop = self._protocol.loop
        if self.received_data and loop.time() < deadline:
            self.received_data = False
            self._timer = loop.call_later(IDLE_S, self._close_if_idle, deadline)
        else:
            self._transport.close()
