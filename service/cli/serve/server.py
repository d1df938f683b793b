"""Uvicorn with a graceful stop that loses no accepted request, an exit code, and problems for malformed HTTP.

On a signal, plain uvicorn closes its port at once, and ends by the signal instead of with an exit code.
"""

import asyncio
import contextlib
import contextvars
import errno
import gc
import json
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final, cast

import structlog
import uvicorn
from fastapi import FastAPI

from service.api.lifecycle import Lifecycle
from service.api.middleware.request_context import HEADER, request_id_of
from service.api.problems.table import BAD_HTTP, MEDIA_TYPE, problem
from service.api.request.archive import MAX_ARCHIVES_IN_WORK
from service.api.request.memory_budget import MemoryBudget
from service.api.services import Services
from service.cli.serve.http_limits import HttpLimitsProtocol
from service.cli.serve.unread_answers import Connection, UnreadAnswers
from service.errors import AnyclassError
from service.settings import Settings

EXIT_OK: Final = 0
EXIT_CUT_SHORT: Final = 1
EXIT_REFUSED: Final = 2

GRACE_S: Final = 1.0
"""Seconds between the first signal and closing the port. Meanwhile `/readyz` answers 503, requests are still answered,
and answers ask clients to close their connections; a request in transit finds an open port."""

_LAST_ROUNDS: Final = 5
_LAST_ROUND_S: Final = 0.05
"""Rounds of the event loop after the port has closed, for requests on the last connections."""
_IDLE_S: Final = 2.0
"""Time for which a connection stays open after its last answer, as a busy client's next request may be on its way."""

_GC_THRESHOLDS: Final = (2_000, 2, 1_000)
"""New objects before a collection of the young ones, and collections of one generation before the next one's.

Short lists of a label set may have a hundred texts each, and the collector visits each text.
"""
_SWITCH_S: Final = 0.0002
_BACKLOG: Final = 2048
_TICKS_PER_S: Final = 10
_log = structlog.stdlib.get_logger("service.server")


class ProblemHttpProtocol(HttpLimitsProtocol):
    """Answers malformed HTTP with a problem document."""

    def send_400_response(self, msg: str) -> None:
        """Answer a request that cannot be parsed, and close the connection."""
        request_id = request_id_of(None)
        body = problem(BAD_HTTP, self.fault or msg, request_id)
        content = json.dumps(body).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            f"content-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(content)}\r\n"
            f"{HEADER}: {request_id}\r\n"
            "x-content-type-options: nosniff\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self.transport.close()


class Server(uvicorn.Server):
    """A uvicorn server for one application.

    Attributes:
        exit_code: 0 after a stop that answered every request, 1 after one that was cut short, 2 if the service
            could not start.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=ProblemHttpProtocol,
                ws="none",
                loop="uvloop",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=math.ceil(settings.keep_alive_s),
                timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
            )
        )
        self.exit_code = EXIT_OK
        self._services: Services = app.state.services
        self._memory_budget: MemoryBudget = app.state.memory_budget
        self._unread = UnreadAnswers(
            cast("set[Connection]", self.server_state.connections),
            self._memory_budget,
            self._services.metrics,
            limit_s=settings.request_timeout_s,
            pressed=self._pressed,
        )
        self._lifecycle: Lifecycle = self._services.lifecycle
        self._lifecycle.when_ready(_settle_heap)
        self._lifecycle.when_failed(self._on_start_failed)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0
        self._descriptor = -1
        self._exhausted = False

    def run_on(self, listener: socket.socket) -> int:
        """Serve on a bound socket until a signal, and return the exit code."""
        self._descriptor = listener.fileno()
        self.run(sockets=[listener])
        _log.info("stopped", exit_code=self.exit_code)
        return self.exit_code

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal."""
        self._loop = asyncio.get_running_loop()
        watching = self._loop.create_task(self._unread.watch())
        try:
            await super().serve(sockets)
        finally:
            watching.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, answer the accepted requests, and shut the application down.

        Closing a port resets connections that are not accepted yet, and uvicorn closes those that have not sent a
        request yet, and idle ones. So the first are accepted, and the others get a moment.
        """
        waiting = [connection for listener in sockets or [] for connection in accept_pending(listener)]
        self._close_port(sockets or [])
        loop = asyncio.get_running_loop()
        for connection in waiting:
            await loop.connect_accepted_socket(self._protocol, connection)
        for number in range(max(_LAST_ROUNDS, math.ceil(_IDLE_S / _LAST_ROUND_S))):
            if self.force_exit or (number >= _LAST_ROUNDS and not self._used_lately(loop.time())):
                break
            await asyncio.sleep(_LAST_ROUND_S)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Check the descriptors once a second. See `uvicorn.Server`, which calls it ten times as often."""
        if counter % _TICKS_PER_S == 0:
            self._check_descriptors()
        return await super().on_tick(counter)

    def _check_descriptors(self) -> None:
        """Count and log that no descriptor is free: libuv then closes new connections without a word."""
        try:
            os.close(os.dup(self._descriptor))
        except OSError as exc:
            if exc.errno != errno.EMFILE:
                return  # the port is closed
            self._services.metrics.out_of_descriptors.inc()
            if not self._exhausted:
                _log.error("connections cannot be accepted", reason=exc.strerror)
            self._exhausted = True
        else:
            self._exhausted = False

    def _used_lately(self, now: float) -> bool:
        """Return whether a client may soon send its next request on an idle connection."""
        idle_since = (cast("HttpLimitsProtocol", each).idle_since() for each in self.server_state.connections)
        return any(since is not None and now - since < _IDLE_S for since in idle_since)

    def _pressed(self) -> bool:
        """Return whether clients that do not read their answers keep others out, or the process from its end."""
        services = self._services
        classifier = services.ready_classifier
        return (
            self._lifecycle.stopping
            or self._memory_budget.crowded
            or services.archives >= MAX_ARCHIVES_IN_WORK
            or (classifier is not None and classifier.batch_places.crowded)
        )

    def _close_port(self, _: list[socket.socket]) -> None:
        for server in self.servers:
            server.close()

    def _protocol(self) -> asyncio.Protocol:
        return ProblemHttpProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving. Unlike uvicorn, do not raise them again: the exit code reports the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """On the first signal stop being ready, then close and drain; on the second exit now."""
        self._signals += 1
        if self._loop is not None:
            # A signal interrupts any callback; its context would name some request in the log of the stop.
            name, context = signal.Signals(sig).name, contextvars.Context()
            self._loop.call_soon_threadsafe(self._stop, self._signals, name, context=context)

    def _stop(self, count: int, name: str) -> None:
        if count == 1:
            _log.info("stopping", signal=name)
            grace_s = GRACE_S if self._lifecycle.ready else 0.0
            self._lifecycle.stop()
            asyncio.get_running_loop().call_later(grace_s, self._close)
        else:
            _log.warning("stopping at once", signal=name)
            self._lifecycle.stop()
            self.exit_code = EXIT_CUT_SHORT
            self.force_exit = True
            self.should_exit = True

    def _close(self) -> None:
        self.should_exit = True

    def _on_start_failed(self, error: Exception) -> None:
        if self.exit_code == EXIT_OK:
            self.exit_code = EXIT_REFUSED
            # The detail of our own errors is enough; a traceback would hide it.
            unexpected = None if isinstance(error, AnyclassError) else error
            _log.error("cannot start", reason=self._lifecycle.reason, exc_info=unexpected)
        self.should_exit = True


def _settle_heap(_: float) -> None:
    """Make the garbage collector and busy threads stop the event loop for shorter times.

    A full collection stops all threads. It would visit every object of the start, some hundred thousand; and with the
    usual thresholds the values of a large request would cause several. A thread that parses one keeps the interpreter's
    lock for as long as the switch interval, each time that the event loop wants it; of four such threads each does. A
    fifth of a millisecond costs them 5% of their speed then, a tenth would cost 28%.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    sys.setswitchinterval(_SWITCH_S)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises `OSError` if the address is not available."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
    except OSError:
        listener.close()
        raise
    return listener


def accept_pending(listener: socket.socket) -> list[socket.socket]:
    """Accept every pending connection."""
    connections: list[socket.socket] = []
    with contextlib.suppress(OSError):  # BlockingIOError: no more connections
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)  # noqa: FBT003 - the standard library's signature
            connections.append(connection)
    return connections


def url_of(listener: socket.socket) -> str:
    """Return the URL of a bound socket, with a host that clients on this machine can use."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
