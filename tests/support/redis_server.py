"""Run a real redis-server on a free loopback port, which tests may stop, freeze, kill and start again."""

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest

from tests.support.ports import free_port

_PATIENCE_S = 60.0  # for a busy machine


class RedisServer:
    """One server process; every `start` uses the same port and no data."""

    def __init__(self, directory: Path, *, password: str | None = None, arguments: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.password = password
        self._directory = directory
        self._arguments = tuple(arguments)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return its address, including any password."""
        credentials = "" if self.password is None else f":{self.password}@"
        return f"redis://{credentials}127.0.0.1:{self.port}/0"

    def start(self) -> Self:
        """Start, and wait until it answers."""
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.fail("redis-server is not installed; make test installs it")
        command = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._directory)]
        command += ["--save", "", "--appendonly", "no", "--loglevel", "warning", *self._arguments]
        if self.password is not None:
            command += ["--requirepass", self.password]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            assert self._process.poll() is None, f"redis-server has ended with {self._process.returncode}"
            with contextlib.suppress(OSError):
                self.command("PING")
                return self
            time.sleep(0.01)
        raise TimeoutError("redis-server did not start")

    def command(self, *words: str) -> bytes:
        """Send one command on a connection of its own; return the beginning of the raw answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=_PATIENCE_S) as connection:
            if self.password is not None:
                connection.sendall(_wire("AUTH", self.password))
                connection.recv(64)
            connection.sendall(_wire(*words))
            return connection.recv(65_536)

    def freeze(self) -> None:
        """Suspend it: connections stay open without answers."""
        self._running().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume it."""
        self._running().send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill it."""
        process = self._running()
        process.kill()
        process.wait()
        self._process = None

    def close(self) -> None:
        """End it if it runs."""
        if self._process is not None:
            self.kill()

    def _running(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "the server does not run"
        return self._process


@contextlib.contextmanager
def running_redis(
    directory: Path, *, password: str | None = None, arguments: Sequence[str] = ()
) -> Iterator[RedisServer]:
    """Yield a running server, and end it."""
    server = RedisServer(directory, password=password, arguments=arguments)
    try:
        yield server.start()
    finally:
        server.close()


def _wire(*words: str) -> bytes:
    parts = [f"*{len(words)}\r\n".encode()]
    parts += [f"${len(word.encode())}\r\n{word}\r\n".encode() for word in words]
    return b"".join(parts)
