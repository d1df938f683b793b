"""What a connection may hold before it is a request: uvicorn on httptools has a limit for none of these.

The body has its own limits, in `service.api`. All else that a client sends is kept until it is whole, so it is bounded
here: the request line with its headers, what follows the last chunk of a body, and requests that are sent before
the answers to earlier ones.
"""

import asyncio
from typing import ClassVar, Final, cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.cli.serve.lingering_close import LingeringProtocol

MAX_HEAD_BYTES: Final = 2**17
"""Room for a URL of 64 KiB, which is as long as the parser can read one, and for as much in headers."""
MAX_PIPELINED: Final = 8
"""Requests that wait for their turn on one connection."""


class BoundedProtocol(LingeringProtocol):
    """HTTP as uvicorn speaks it, where whoever sends too much or too slowly is hung up on.

    Attributes:
        head_timeout_s: how long a client may take for the request line and the headers.
    """

    head_timeout_s: ClassVar[float] = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """A client is there, and has some time to say what it wants."""
        super().connection_made(transport)
        self._quiet_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come; what leads to no body and to no end of a request is counted."""
        self._quiet_bytes += len(data)
        super().data_received(data)
        if self._quiet_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The request line and headers have more than {MAX_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._head_is_there()
        self._expect_head()

    def on_headers_complete(self) -> None:
        """Its head is there. Raises, which ends the connection, where too many requests wait for their turn."""
        self._head_is_there()
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self.pipeline.clear()
            raise _TooManyPipelinedError

    def on_body(self, body: bytes) -> None:
        """Some of the body, which its reader counts."""
        self._quiet_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._quiet_bytes = 0
        super().on_message_complete()

    def _expect_head(self) -> None:
        self._timer = self.loop.call_later(self.head_timeout_s, self._head_is_late)

    def _head_is_there(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_is_late(self) -> None:
        # There is none before the first request, whatever uvicorn's annotation says.
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None or cycle.response_complete:
            self.transport.close()
        else:
            # Nothing is read while an earlier request is answered.
            self._expect_head()


class _TooManyPipelinedError(Exception):
    """The parser turns it into one of its own."""
