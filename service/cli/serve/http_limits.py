"""Limits on the bytes that a connection may hold before a request is complete; uvicorn on httptools has none of these.

`service.api` limits the body. Anything else that a client sends is buffered until it is complete, so it is limited
here: the request line with the headers, the trailers after the last chunk of a body, and requests that are sent before
earlier ones are answered.
"""

import asyncio
import re
from typing import ClassVar, Final, cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.cli.serve.lingering_close import LingeringProtocol

MAX_HEAD_BYTES: Final = 2**17
"""A URL of 64 KiB, the longest that the parser can read, and as much again for headers."""
MAX_HEADERS: Final = 256
"""Headers of one request. Each of them costs time whenever one is looked for."""
MAX_PIPELINED: Final = 8
"""Requests that wait for their turn on one connection."""
_HOST: Final = re.compile(rb"[\w.~!$&'()*+,;=:%\[\]-]*")
"""Characters of `uri-host [":" port]` in RFC 9110, section 7.2; it may be empty."""


class HttpLimitsProtocol(LingeringProtocol):
    """Uvicorn's HTTP protocol, which closes the connection of a client that sends too much or too slowly.

    Attributes:
        head_timeout_s: time for the request line and the headers, in seconds.
        fault: reason for refusing the request as no HTTP, if the parser has found none.
    """

    head_timeout_s: ClassVar[float] = 30.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as in uvicorn
        """Start the timer for the request head."""
        super().connection_made(transport)
        self.fault: str | None = None
        self._unread_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse data; answer 400 if too much of it completes neither a part of a body nor a request."""
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The request line and headers have more than {MAX_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        """Restart the timer for the head of the next request."""
        super().on_message_begin()
        self._stop_timer()
        self._start_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; close the connection if the request has more than MAX_HEADERS."""
        if len(self.headers) >= MAX_HEADERS:
            self.fault = f"The request has more than {MAX_HEADERS} headers."
            raise _RefusedError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the timer; refuse a wrong Host, and close the connection if more than MAX_PIPELINED requests wait."""
        self._stop_timer()
        self._check_host()
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self.pipeline.clear()
            self.fault = f"More than {MAX_PIPELINED} requests wait for their turn on this connection."
            raise _RefusedError

    def _check_host(self) -> None:
        """Refuse a request as RFC 9112, section 3.2, asks."""
        hosts = [value for name, value in self.headers if name == b"host"]
        if len(hosts) != 1 and (hosts or self.parser.get_http_version() == "1.1"):
            self.fault = f"A request needs one Host header; this one has {len(hosts) or 'none'}."
            raise _RefusedError
        if hosts and _HOST.fullmatch(hosts[0]) is None:
            self.fault = "The Host header names no host."
            raise _RefusedError

    def on_body(self, body: bytes) -> None:
        """Reset the count: the reader of the body counts its bytes."""
        self._unread_bytes = 0
        self.body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Reset the count: the request is complete."""
        self._unread_bytes = 0
        super().on_message_complete()

    def idle_since(self) -> float | None:
        """Return the time of the event loop at which the last answer ended; None unless the client may ask again."""
        timer = self.timeout_keep_alive_task
        return None if timer is None else timer.when() - self.timeout_keep_alive

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.head_timeout_s, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        # None before the first request, despite uvicorn's annotation.
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None or cycle.response_complete:
            self.transport.close()
        else:
            # Nothing is read while an earlier request is being answered.
            self._start_timer()


class _RefusedError(Exception):
    """Ends the connection: the parser turns it into an error of its own, without the message."""
