"""Run a server under test: its process group, readiness and memory. It is frozen while others are measured."""

import http.client
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Self

from tests.bench.environments import Unavailable
from tests.bench.places import LOGS
from tests.support.places import ROOT

_POLL_S: Final = 0.01
_PATIENCE_S: Final = 900.0  # TensorRT builds its engines when it starts
_FAREWELL_S: Final = 15.0
_LAST_CHARS: Final = 600
_OK: Final = 200
_QUIET: Final = {
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Switches off telemetry and access to the network, which would cost time."""


class Server:
    """A process group that listens on a port of 127.0.0.1.

    Attributes:
        name: name in logs.
        port: its port.
        ready_s: seconds from its start until it was ready.
    """

    def __init__(self, name: str, command: Sequence[str], port: int, env: Mapping[str, str] | None = None) -> None:
        LOGS.mkdir(parents=True, exist_ok=True)
        self.name, self.port, self.ready_s = name, port, 0.0
        self._log = LOGS / f"{name}.log"
        self._started = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **_QUIET, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Return the id of the first process and of the group."""
        return self._process.pid

    def wait_ready(self, path: str) -> Self:
        """Wait until `path` answers 200. Raises Unavailable with the end of its log if it never does."""
        until = time.monotonic() + _PATIENCE_S
        while not self._answers(path):
            if self._process.poll() is not None:
                raise Unavailable(f"{self.name} ended with {self._process.returncode}: {self._said()}")
            if time.monotonic() > until:
                raise Unavailable(f"{self.name} was not ready after {_PATIENCE_S:.0f} s: {self._said()}")
            time.sleep(_POLL_S)
        self.ready_s = time.perf_counter() - self._started
        return self

    def freeze(self) -> None:
        """Suspend every process of the group, so that it costs other servers nothing."""
        os.killpg(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Resume it."""
        os.killpg(self.pid, signal.SIGCONT)

    def memory_bytes(self) -> int:
        """Return the resident memory of all its processes."""
        return sum(map(resident_bytes, group(self.pid)))

    def stop(self) -> None:
        """End it, gently first."""
        for number, patience_s in ((signal.SIGTERM, _FAREWELL_S), (signal.SIGKILL, _FAREWELL_S)):
            if not group(self.pid):
                break
            os.killpg(self.pid, signal.SIGCONT)
            os.killpg(self.pid, number)
            until = time.monotonic() + patience_s
            while group(self.pid) and time.monotonic() < until:
                self._process.poll()
                time.sleep(_POLL_S)
        self._process.wait()

    def _answers(self, path: str) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == _OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _said(self) -> str:
        return " ".join(self._log.read_text("utf-8", errors="replace")[-_LAST_CHARS:].split())


class MemoryWatch:
    """Samples a server's memory in a thread. Attribute `samples`: pairs of seconds since the start and bytes."""

    def __init__(self, server: Server, every_s: float) -> None:
        self.samples: list[tuple[float, int]] = []
        self._server, self._every_s = server, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        started = time.monotonic()
        while True:
            self.samples.append((time.monotonic() - started, self._server.memory_bytes()))
            if self._over.wait(self._every_s):
                return


@contextmanager
def running(
    name: str, command: Sequence[str], port: int, *, ready: str, env: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start a server, wait until it is ready, and end it with the block. Raises Unavailable if it does not start."""
    server = Server(name, command, port, env)
    try:
        yield server.wait_ready(ready)
    finally:
        server.stop()


def group(leader: int) -> list[int]:
    """Return the processes of a group that have not ended."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                # pid (name) state parent group …; a name may contain blanks and brackets
                state, _, number = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(number) == leader and state != "Z":
                found.append(int(folder.name))
    return found


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 for one that has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def cpu_s(pid: int) -> float:
    """Return the processor time of a process, all its threads together; 0 for one that has ended."""
    try:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return 0.0
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
