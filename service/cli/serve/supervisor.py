"""Several processes on one port, each with a model of its own: `anyclass serve --workers N`.

This process binds the port, starts the others and watches them; it loads no model and answers nothing. They share the
listening socket, so a connection that nobody has accepted yet waits for whichever is free, also while one of them is
started anew. Each takes connections once its model is warm, and one at a time, so that those that are free get as
many as those that are not.

The first process gives its orders over a pipe, whose end tells the others of its own: none outlives it. What they
count is in a folder of files (prometheus-client's multiprocess mode), so `/metrics` tells of all of them, whichever
answers.
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Final

import structlog

from service.cli.serve.server import EXIT_CUT_SHORT, EXIT_OK, GRACE_S
from service.cli.serve.worker import LEAVE, STOP, Worker
from service.errors import ConfigurationError
from service.model.engine.cpus import available_cpus
from service.monitoring.worker_metrics import VARIABLE, forget_process, remember_process
from service.settings import Settings

_SHORTEST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
"""Before a process that has ended is started anew; twice as long each time that it was not even ready."""
_MARGIN_S: Final = 10.0
"""How much longer than they should take processes may take to end."""

_log = structlog.stdlib.get_logger("service.workers")


def check(settings: Settings) -> None:
    """Raise ConfigurationError for settings whose promise several processes cannot keep."""
    if settings.workers > 1 and settings.rate_limit_per_s is not None and settings.redis_url is None:
        raise ConfigurationError(
            f"ANYCLASS_RATE_LIMIT_PER_S with {settings.workers} workers needs ANYCLASS_REDIS_URL: "
            "each process would count by itself, and a client get so many times its rate."
        )


def share_of(settings: Settings, cpus: int) -> Settings:
    """The settings of one process: its share of the CPUs for each pool of threads whose size is not set."""
    share = max(1, cpus // settings.workers)
    update = {"threads": settings.threads or share, "decode_threads": settings.decode_threads or share}
    return settings.model_copy(update=update)


@dataclass(slots=True)
class _Worker:
    """One of the processes."""

    number: int
    process: SpawnProcess
    orders: Connection
    warm: bool = False

    def tell(self, order: str) -> None:
        """Give an order, if there is anybody to take it."""
        with suppress(OSError):  # it has just ended, which is told otherwise
            self.orders.send(order)


class Supervisor:
    """Keeps `settings.workers` processes on a socket until a signal, which may come twice: stop, then at once.

    Attributes:
        when_ready: told the default model's name, and how many seconds it took until all processes were ready.
    """

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self.when_ready: Callable[[str, float], None] | None = None
        self._settings = share_of(settings, available_cpus())
        self._listener = listener
        self._workers: dict[int, _Worker] = {}
        self._due: dict[int, float] = {}
        self._pauses: dict[int, float] = {}
        self._signals: list[int] = []
        self._began = time.monotonic()
        self._was_ready = False
        self._stopping = False
        self._exit_code = EXIT_OK
        self._patience_until = float("inf")

    def run(self) -> int:
        """Start the processes and watch them. Returns the exit code: the worst of theirs."""
        folder = _shared_folder()
        try:
            with self._waking_up() as news:
                for number in range(self._settings.workers):
                    self._start(number, folder)
                while self._workers or not self._stopping:
                    self._watch(news, folder)
        finally:
            os.environ.pop(VARIABLE, None)
            shutil.rmtree(folder, ignore_errors=True)
        _log.info("stopped", exit_code=self._exit_code)
        return self._exit_code

    def _watch(self, news: socket.socket, folder: Path) -> None:
        """Wait until something has happened, and see to it."""
        workers = list(self._workers.values())
        ends = [worker.process.sentinel for worker in workers]
        pipes = [worker.orders for worker in workers if not worker.warm]
        next_moment = min([*self._due.values(), self._patience_until])
        timeout_s = None if next_moment == float("inf") else max(0.0, next_moment - time.monotonic())
        happened = wait([news, *ends, *pipes], timeout_s)
        if news in happened:
            news.recv(64)
        while self._signals:
            self._stop(self._signals.pop(0))
        for worker in workers:
            if worker.orders in happened:
                self._warm(worker)
            if worker.process.sentinel in happened:
                self._ended(worker, folder)
        now = time.monotonic()
        for number in [number for number, due in self._due.items() if due <= now]:
            del self._due[number]
            self._start(number, folder)
        if now >= self._patience_until:
            for worker in self._workers.values():
                _log.error("a worker does not end; it is killed", worker=worker.number, pid=worker.process.pid)
                worker.process.kill()
            self._patience_until = float("inf")

    def _start(self, number: int, folder: Path) -> None:
        ours, theirs = get_context("spawn").Pipe()
        process = get_context("spawn").Process(
            target=_work, args=(number, self._settings, self._listener, theirs, folder), name=f"anyclass-{number}"
        )
        process.start()
        if process.pid is not None:
            remember_process(folder, process.pid, number)
        theirs.close()  # so that our end tells when the process is gone, and theirs when we are
        self._workers[number] = _Worker(number, process, ours)

    def _warm(self, worker: _Worker) -> None:
        try:
            model: str = worker.orders.recv()
        except (EOFError, OSError):
            return  # it ends, which is told otherwise
        worker.warm = True
        self._pauses.pop(worker.number, None)
        _log.info("worker ready", worker=worker.number, pid=worker.process.pid)
        everyone = len(self._workers) == self._settings.workers and all(one.warm for one in self._workers.values())
        if everyone and not self._was_ready:
            self._was_ready = True
            if self.when_ready is not None:
                self.when_ready(model, time.monotonic() - self._began)

    def _ended(self, worker: _Worker, folder: Path) -> None:
        worker.process.join()
        code = worker.process.exitcode or EXIT_OK
        worker.orders.close()
        del self._workers[worker.number]
        if worker.process.pid is not None:
            forget_process(folder, worker.process.pid)
        if self._stopping:
            self._exit_code = max(self._exit_code, _as_exit_code(code))
        elif not self._was_ready:
            # What keeps one of them from starting keeps it from starting again.
            self._exit_code = _as_exit_code(code) or EXIT_CUT_SHORT
            _log.error("a worker ended before it was ready", worker=worker.number, exit_code=code)
            self._end(STOP)
        else:
            pause_s = self._pauses.get(worker.number, _SHORTEST_PAUSE_S)
            self._pauses[worker.number] = min(2 * pause_s, _LONGEST_PAUSE_S)
            self._due[worker.number] = time.monotonic() + pause_s
            _log.error("a worker ended; it is started anew", worker=worker.number, exit_code=code, pause_s=pause_s)

    def _stop(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._stopping:
            _log.warning("stopping at once", signal=name)
            self._exit_code = EXIT_CUT_SHORT
            self._end(LEAVE)
        else:
            _log.info("stopping", signal=name)
            self._end(STOP)

    def _end(self, order: str) -> None:
        self._stopping = True
        self._due.clear()
        # Theirs stay open until each has had its moment of grace; with the last of them the port is closed.
        self._listener.close()
        self._patience_until = time.monotonic() + GRACE_S + self._settings.drain_timeout_s + _MARGIN_S
        for worker in self._workers.values():
            worker.tell(order)

    @contextmanager
    def _waking_up(self) -> Iterator[socket.socket]:
        """Collect SIGTERM and SIGINT in `_signals`; each is a byte on the socket that the block gets."""
        news, write = socket.socketpair()
        news.setblocking(False)  # noqa: FBT003 - the standard library's signature
        write.setblocking(False)  # noqa: FBT003 - the same

        def heard(number: int, _: FrameType | None) -> None:
            self._signals.append(number)

        before = {number: signal.signal(number, heard) for number in (signal.SIGTERM, signal.SIGINT)}
        wakeup = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        try:
            yield news
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            news.close()
            write.close()


def _shared_folder() -> Path:
    """Make the folder of what the processes count. Raises ConfigurationError where there is no place for it."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="anyclass-metrics-"))
    except OSError as exc:
        raise ConfigurationError(f"Several workers need a temporary directory for their metrics: {exc}") from exc
    # prometheus-client reads it when it is first imported, in the processes that are started from here.
    os.environ[VARIABLE] = str(folder)
    return folder


def _as_exit_code(code: int) -> int:
    """Of a process that a signal has ended `multiprocessing` tells the negative number."""
    if code == -signal.SIGTERM:  # from before it could handle it, so before it accepted anything
        return EXIT_OK
    return EXIT_CUT_SHORT if code < 0 else code


def _work(number: int, settings: Settings, listener: socket.socket, orders: Connection, folder: Path) -> None:
    """One of the processes, from its start to its end."""
    # An interrupt at the terminal reaches every process; the first one gives the orders.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from service.app import create_app
    from service.monitoring import logs
    from service.monitoring.metrics import Metrics

    logs.configure(settings.log_level, settings.log_format, worker=number)
    server = Worker(create_app(settings, metrics=Metrics(shared=folder)), settings, orders)
    code = server.run_on(listener)
    if server.force_exit:
        # Threads that are still busy would be waited for at a regular exit.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
