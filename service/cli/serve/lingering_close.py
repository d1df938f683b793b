"""Hanging up on a client that is still sending, so that it gets its answer (RFC 9112, section 9.6).

A request may be refused before its body has come: without a key, or with a body that is too large. To close the
connection at that moment would have the kernel reset it, and the reset may overtake the answer: the client would be
told of a broken connection. So the answer is followed by an end of the stream, and what the client still sends is
read and thrown away, for a while.
"""

import asyncio
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

IDLE_S: Final = 2.0
"""A client that sends nothing for so long has seen the end, or is gone."""
LONGEST_S: Final = 30.0


class LingeringProtocol(HttpToolsProtocol):
    """HTTP as uvicorn speaks it, with a slow goodbye for a client whose request has not come whole."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """A client is there."""
        self._ending = _Ending(transport, self)
        super().connection_made(cast("asyncio.Transport", self._ending))

    def data_received(self, data: bytes) -> None:
        """A client sends; after its answer nobody reads it."""
        if self._ending.lingers:
            self._ending.heard = True
        else:
            super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._ending.gone()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops; a goodbye that has begun ends by itself."""
        if not self._ending.lingers:
            super().shutdown()


class _Ending:
    """A transport whose `close` takes its time where the client is still sending; all else is the transport's own.

    Attributes:
        lingers: whether it is closing so.
        heard: whether the client has sent anything since this was last set to False.
    """

    def __init__(self, transport: asyncio.Transport, protocol: HttpToolsProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._timer: asyncio.TimerHandle | None = None
        self.lingers = False
        self.heard = False

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the transport's
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport`."""
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        """See `asyncio.BaseTransport`."""
        # There is none before the first request, whatever uvicorn's annotation says.
        cycle = cast("RequestResponseCycle | None", self._protocol.cycle)
        sending = cycle is not None and cycle.response_complete and cycle.more_body
        if self.lingers or not sending or self._transport.is_closing() or not self._transport.can_write_eof():
            self.gone()
            self._transport.close()
            return
        self.lingers = True
        self._transport.write_eof()
        # Reading may have been paused while nobody asked for the body.
        self._transport.resume_reading()
        loop = self._protocol.loop
        self._timer = loop.call_later(IDLE_S, self._look, loop.time() + LONGEST_S)

    def gone(self) -> None:
        """There is nothing more to wait for."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, end: float) -> None:
        loop = self._protocol.loop
        if self.heard and loop.time() < end:
            self.heard = False
            self._timer = loop.call_later(IDLE_S, self._look, end)
        else:
            self._transport.close()
