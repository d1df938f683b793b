"""One of several processes on one port: the server, with the differences that this makes."""

import asyncio
import contextlib
import signal
import socket
from multiprocessing.connection import Connection
from types import FrameType
from typing import Final

import structlog
from fastapi import FastAPI

from service.api.services import Services
from service.cli.serve.server import EXIT_CUT_SHORT, Server
from service.settings import Settings

STOP: Final = "stop"
"""The order to answer what was accepted and to end."""
LEAVE: Final = "leave"
"""The order to end at once."""

_PAUSE_S: Final = 1.0
"""Without new connections, where one could not be accepted: there are too many already."""
_log = structlog.stdlib.get_logger("service.server")


class Worker(Server):
    """A server that shares its socket, takes orders from the first process, and is replaced when its device is lost."""

    def __init__(self, app: FastAPI, settings: Settings, orders: Connection) -> None:
        super().__init__(app, settings)
        self._orders = orders
        self._services: Services = app.state.services
        self._decided = asyncio.Event()
        self._accepting: list[socket.socket] = []
        self._greeting: set[asyncio.Task[object]] = set()
        self._services.lifecycle.when_ready(self._ready)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until an order, or until the first process is gone."""
        asyncio.get_running_loop().add_reader(self._orders.fileno(), self._obey)
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections once the model is warm: until then those that come belong to processes whose model is."""
        await super().startup([])
        await self._decided.wait()
        if not self.should_exit:
            for listener in sockets or []:
                self._accept_from(listener)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As for one process; the port stays open as long as another has it."""
        for listener in self._accepting:
            asyncio.get_running_loop().remove_reader(listener)
        self._accepting.clear()
        await asyncio.gather(*self._greeting, return_exceptions=True)
        if self._lost:
            self._close_port(sockets or [])  # what waits is for a process that can answer it
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second. With a device that is lost there is nothing to serve, and `/livez` asks any process."""
        if self._lost and not self.should_exit:
            _log.critical("a device is lost or its scheduler has died; this process ends")
            self.exit_code = EXIT_CUT_SHORT
            self.should_exit = True
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM asks for the end, however often it comes: who stops a service often signals every process of it."""
        if sig == signal.SIGTERM and not self._signals:
            super().handle_exit(sig, frame)

    @property
    def _lost(self) -> bool:
        registry = self._services.registry
        return registry is not None and not registry.healthy

    def _ready(self, _: float) -> None:
        self._decided.set()
        self._services.metrics.ready.set(1)  # a function, as one process has it, is not seen by the others
        with contextlib.suppress(OSError):  # the first process is gone, which is told otherwise
            self._orders.send(self._services.models.default)

    def _close_port(self, sockets: list[socket.socket]) -> None:
        for listener in sockets:
            listener.close()

    def _stop(self, count: int, name: str) -> None:
        super()._stop(count, name)
        self._services.metrics.ready.set(0)

    def _close(self) -> None:
        super()._close()
        self._decided.set()

    def _refuse(self, error: Exception) -> None:
        super()._refuse(error)
        self._decided.set()

    def _obey(self) -> None:
        try:
            order = self._orders.recv()
        except (EOFError, OSError):  # the first process is gone
            asyncio.get_running_loop().remove_reader(self._orders.fileno())
            order = None
        if order == LEAVE:
            self._signals += 1
            self._stop(2, order)
        else:
            self.handle_exit(signal.SIGTERM, None)

    def _accept_from(self, listener: socket.socket) -> None:
        if not self.should_exit:
            listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
            self._accepting.append(listener)
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept one connection; the event loop comes back for the next, where no other process is faster."""
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as exc:
            _log.error("connections cannot be accepted", reason=exc.strerror)
            self._accept_later(listener)
            return
        connection.setblocking(False)  # noqa: FBT003 - the standard library's signature
        loop = asyncio.get_running_loop()
        greeting: asyncio.Task[object] = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
        self._greeting.add(greeting)
        greeting.add_done_callback(self._greeting.discard)

    def _accept_later(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        self._accepting.remove(listener)
        loop.call_later(_PAUSE_S, self._accept_from, listener)
