"""Uvicorn, with an end that loses no accepted request, an exit code that says how it went, and errors in one form.

What uvicorn itself does on a signal is to close its port at once, and to end by the signal instead of with a code.
"""

import asyncio
import contextlib
import json
import math
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Final

import structlog
import uvicorn
from fastapi import FastAPI

from service.api.lifecycle import Lifecycle
from service.api.middleware.request_context import HEADER, request_id_of
from service.api.problems.table import BAD_HTTP, MEDIA_TYPE, problem
from service.cli.serve.http_limits import BoundedProtocol
from service.errors import AnyclassError
from service.settings import Settings

EXIT_OK: Final = 0
EXIT_CUT_SHORT: Final = 1
EXIT_REFUSED: Final = 2

GRACE_S: Final = 1.0
"""Seconds between the first signal and closing the port. In them `/readyz` says no, requests are still answered, and
clients with an open connection are told to close it; a request on its way meets an open port."""

_LINGER_TURNS: Final = 5
_LINGER_TURN_S: Final = 0.05
"""After the port has closed, turns of the event loop for requests on connections that were made just before."""

_BACKLOG: Final = 2048
_log = structlog.stdlib.get_logger("service.server")


class ProblemHttpProtocol(BoundedProtocol):
    """Answers what is not even HTTP with a problem, as everything else."""

    def send_400_response(self, msg: str) -> None:
        """Answer a request that the parser gave up on, and hang up."""
        request_id = request_id_of(None)
        body = problem(BAD_HTTP, msg, request_id)
        content = json.dumps(body).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            f"content-type: {MEDIA_TYPE}\r\n"
            f"content-length: {len(content)}\r\n"
            f"{HEADER}: {request_id}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + content)
        self.transport.close()


class Server(uvicorn.Server):
    """A uvicorn server for one application.

    Attributes:
        exit_code: 0 after a stop that answered everything, 1 after one that was cut short, 2 when the service
            refused to start.
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
        self._lifecycle: Lifecycle = app.state.services.lifecycle
        self._lifecycle.when_failed(self._refuse)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signals = 0

    def run_on(self, listener: socket.socket) -> int:
        """Serve on a socket that is bound, until a signal. Returns the exit code."""
        self.run(sockets=[listener])
        _log.info("stopped", exit_code=self.exit_code)
        return self.exit_code

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, answer what was accepted, and end the application.

        Closing a port resets the connections that nobody has accepted yet, and uvicorn hangs up on those that have not
        sent a request yet. So the former are accepted first, and the latter have a moment.
        """
        waiting = [connection for listener in sockets or [] for connection in accept_all(listener)]
        self._close_port(sockets or [])
        loop = asyncio.get_running_loop()
        for connection in waiting:
            await loop.connect_accepted_socket(self._protocol, connection)
        for _ in range(0 if self.force_exit else _LINGER_TURNS):
            await asyncio.sleep(_LINGER_TURN_S)
        await super().shutdown(sockets)

    def _close_port(self, _: list[socket.socket]) -> None:
        for server in self.servers:
            server.close()

    def _protocol(self) -> asyncio.Protocol:
        return ProblemHttpProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving, and do not raise them again afterwards: the exit code tells."""
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
        """First signal: stop being ready, then close and drain. Second: leave now."""
        self._signals += 1
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop, self._signals, signal.Signals(sig).name)

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

    def _refuse(self, error: Exception) -> None:
        if self.exit_code == EXIT_OK:
            self.exit_code = EXIT_REFUSED
            # The detail of an error that was foreseen says all; a traceback would only hide it.
            unforeseen = None if isinstance(error, AnyclassError) else error
            _log.error("cannot start", reason=self._lifecycle.reason, exc_info=unforeseen)
        self.should_exit = True


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `OSError` where the address cannot be had."""
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


def accept_all(listener: socket.socket) -> list[socket.socket]:
    """Every connection that waits to be accepted."""
    connections: list[socket.socket] = []
    with contextlib.suppress(OSError):  # BlockingIOError: there are no more
        while True:
            connection, _ = listener.accept()
            connection.setblocking(False)  # noqa: FBT003 - the standard library's signature
            connections.append(connection)
    return connections


def url_of(listener: socket.socket) -> str:
    """The URL of a bound socket, with a host that a client on this machine can use."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
