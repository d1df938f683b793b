"""Server of a worker process, which shares its port with others."""

import asyncio
import contextlib
import signal
import socket
from multiprocessing.connection import Connection
from types import FrameType
from typing import Final

import structlog
from fastapi import FastAPI

from service.cli.serve.server import EXIT_CUT_SHORT, Server
from service.settings import Settings

STOP: Final = "stop"
"""Command: answer accepted requests, then exit."""
EXIT_NOW: Final = "leave"
"""Command: exit at once."""

_ACCEPT_PAUSE_S: Final = 1.0
"""Pause after a connection could not be accepted, because too many are open."""
_log = structlog.stdlib.get_logger("service.server")


class Worker(Server):
    """A server that shares its socket, takes commands from the supervisor, and exits when its device is lost."""

    def __init__(self, app: FastAPI, settings: Settings, pipe: Connection) -> None:
        super().__init__(app, settings)
        self._pipe = pipe
        self._startup_ended = asyncio.Event()
        self._warm = False
        self._accepting: list[socket.socket] = []
        self._connecting: set[asyncio.Task[object]] = set()
        self._services.lifecycle.when_ready(self._on_ready)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a command, or until the supervisor is gone."""
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._on_command)
        await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections once the model is warm; until then warm workers take them."""
        await super().startup([])
        await self._startup_ended.wait()
        if not self.should_exit:
            for listener in sockets or []:
                self._accept_from(listener)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Shut down as a single process does; the port stays open while another worker has it."""
        for listener in self._accepting:
            asyncio.get_running_loop().remove_reader(listener)
        self._accepting.clear()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        if self._device_lost or not self._warm:
            self._close_port(sockets or [])  # pending connections are for a worker that can answer them
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Exit when the device is lost (checked ten times a second): `/livez` may reach another worker."""
        if self._device_lost and not self.should_exit:
            _log.critical("a device is lost or its scheduler has died; this process ends")
            self.exit_code = EXIT_CUT_SHORT
            self.should_exit = True
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop on the first SIGTERM and ignore others: a service manager often signals every process."""
        if sig == signal.SIGTERM and not self._signals:
            super().handle_exit(sig, frame)

    @property
    def _device_lost(self) -> bool:
        registry = self._services.registry
        return registry is not None and not registry.healthy

    def _on_ready(self, _: float) -> None:
        self._warm = True
        self._startup_ended.set()
        self._services.metrics.ready.set(
            1
        )  # other processes cannot see a gauge's function, which a single process uses
        with contextlib.suppress(OSError):  # the supervisor is gone, which the pipe's end reports
            self._pipe.send(self._services.models.default)

    def _close_port(self, sockets: list[socket.socket]) -> None:
        for listener in sockets:
            listener.close()

    def _stop(self, count: int, name: str) -> None:
        super()._stop(count, name)
        self._services.metrics.ready.set(0)

    def _close(self) -> None:
        super()._close()
        self._startup_ended.set()

    def _on_start_failed(self, error: Exception) -> None:
        super()._on_start_failed(error)
        self._startup_ended.set()

    def _on_command(self) -> None:
        try:
            command = self._pipe.recv()
        except (EOFError, OSError):  # the supervisor is gone
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            command = None
        if command == EXIT_NOW:
            self._signals += 1
            self._stop(2, command)
        else:
            self.handle_exit(signal.SIGTERM, None)

    def _accept_from(self, listener: socket.socket) -> None:
        if not self.should_exit:
            listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
            self._accepting.append(listener)
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept one connection; the event loop returns for the next, unless another worker is faster."""
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as exc:
            _log.error("connections cannot be accepted", reason=exc.strerror)
            self._pause_accepting(listener)
            return
        connection.setblocking(False)  # noqa: FBT003 - the standard library's signature
        loop = asyncio.get_running_loop()
        connecting: asyncio.Task[object] = loop.create_task(loop.connect_accepted_socket(self._protocol, connection))
        self._connecting.add(connecting)
        connecting.add_done_callback(self._connecting.discard)

    def _pause_accepting(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        self._accepting.remove(listener)
        loop.call_later(_ACCEPT_PAUSE_S, self._accept_from, listener)
