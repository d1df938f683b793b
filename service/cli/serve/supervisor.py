"""Several worker processes on one port, each with its own models: `anyclass serve --workers N`.

The supervisor binds the port, starts the workers and watches them; it loads no model and answers no request. The
workers share the listening socket, so a pending connection waits for any free worker, also while another restarts. Each
accepts connections once its model is warm, one at a time, so that busy workers do not take more than free ones.

The supervisor sends commands over a pipe. The pipe closes when the supervisor ends, and each worker then stops: none
outlives it. The workers' metrics are in a folder of files (prometheus-client's multiprocess mode), so `/metrics` covers
all workers, whichever answers.
"""

import os
import signal
import socket
import sys
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

from service.cli.serve.metrics_folder import enter, leave, make_folder
from service.cli.serve.server import EXIT_CUT_SHORT, EXIT_OK, GRACE_S
from service.cli.serve.worker import EXIT_NOW, STOP, Worker
from service.errors import ConfigurationError
from service.model.engine.cpus import available_cpus
from service.monitoring.worker_metrics import VARIABLE, register_process, unregister_process
from service.settings import Settings

_MIN_PAUSE_S: Final = 1.0
_MAX_PAUSE_S: Final = 30.0
"""Pause before a restart; it doubles each time that a worker ends before it is ready."""
_MARGIN_S: Final = 10.0
"""Time beyond the drain timeout after which workers are killed."""

_log = structlog.stdlib.get_logger("service.workers")


def check_workers(settings: Settings) -> None:
    """Raise ConfigurationError for settings that do not work with several processes."""
    if settings.workers > 1 and settings.rate_limit_per_s is not None and settings.redis_url is None:
        raise ConfigurationError(
            f"ANYCLASS_RATE_LIMIT_PER_S with {settings.workers} workers needs ANYCLASS_REDIS_URL: without it each "
            f"process counts alone, and a client gets {settings.workers} times its rate."
        )


def share_of(settings: Settings, cpus: int) -> Settings:
    """Return the settings of one worker: thread pools without a set size get its share of the CPUs."""
    share = max(1, cpus // settings.workers)
    update = {"threads": settings.threads or share, "decode_threads": settings.decode_threads or share}
    return settings.model_copy(update=update)


@dataclass(slots=True)
class _WorkerProcess:
    """A worker, as the supervisor sees it."""

    number: int
    process: SpawnProcess
    pipe: Connection
    ready: bool = False

    def send(self, command: str) -> None:
        """Send a command, unless the process has ended."""
        with suppress(OSError):  # it has just ended, which its sentinel reports
            self.pipe.send(command)


class Supervisor:
    """Keeps `settings.workers` processes on a socket until a signal; a second signal stops them at once.

    Attributes:
        when_ready: called once all workers are ready, with the default model's name and the seconds it took.
    """

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self.when_ready: Callable[[str, float], None] | None = None
        self._settings = share_of(settings, available_cpus())
        self._listener = listener
        self._workers: dict[int, _WorkerProcess] = {}
        self._restart_at: dict[int, float] = {}
        self._pauses: dict[int, float] = {}
        self._signals: list[int] = []
        self._began = time.monotonic()
        self._was_ready = False
        self._stopping = False
        self._exit_code = EXIT_OK
        self._kill_at = float("inf")

    def run(self) -> int:
        """Start the workers and watch them; return the exit code, the highest of theirs."""
        folder = make_folder()
        presence = enter(folder, "supervisor")
        try:
            with self._signal_wakeup() as wakeup:
                for number in range(self._settings.workers):
                    self._start(number, folder)
                while self._workers or not self._stopping:
                    self._watch(wakeup, folder)
        finally:
            os.environ.pop(VARIABLE, None)
            leave(folder, presence)
        _log.info("stopped", exit_code=self._exit_code)
        return self._exit_code

    def _watch(self, wakeup: socket.socket, folder: Path) -> None:
        """Wait for the next event, and handle it."""
        workers = list(self._workers.values())
        sentinels = [worker.process.sentinel for worker in workers]
        pipes = [worker.pipe for worker in workers if not worker.ready]
        next_deadline = min([*self._restart_at.values(), self._kill_at])
        timeout_s = None if next_deadline == float("inf") else max(0.0, next_deadline - time.monotonic())
        events = wait([wakeup, *sentinels, *pipes], timeout_s)
        if wakeup in events:
            wakeup.recv(64)
        while self._signals:
            self._stop(self._signals.pop(0))
        for worker in workers:
            if worker.pipe in events:
                self._on_ready(worker)
            if worker.process.sentinel in events:
                self._on_end(worker, folder)
        now = time.monotonic()
        for number in [number for number, at in self._restart_at.items() if at <= now]:
            del self._restart_at[number]
            self._start(number, folder)
        if now >= self._kill_at:
            for worker in self._workers.values():
                _log.error("a worker does not end; it is killed", worker=worker.number, pid=worker.process.pid)
                worker.process.kill()
            self._kill_at = float("inf")

    def _start(self, number: int, folder: Path) -> None:
        ours, theirs = get_context("spawn").Pipe()
        process = get_context("spawn").Process(
            target=_run_worker, args=(number, self._settings, self._listener, theirs, folder), name=f"anyclass-{number}"
        )
        process.start()
        if process.pid is not None:
            register_process(folder, process.pid, number)
        theirs.close()  # so that each end of the pipe sees when the other process is gone
        self._workers[number] = _WorkerProcess(number, process, ours)

    def _on_ready(self, worker: _WorkerProcess) -> None:
        try:
            model: str = worker.pipe.recv()
        except (EOFError, OSError):
            return  # it ends, which its sentinel reports
        worker.ready = True
        self._pauses.pop(worker.number, None)
        _log.info("worker ready", worker=worker.number, pid=worker.process.pid)
        all_ready = len(self._workers) == self._settings.workers and all(each.ready for each in self._workers.values())
        if all_ready and not self._was_ready:
            self._was_ready = True
            if self.when_ready is not None:
                self.when_ready(model, time.monotonic() - self._began)

    def _on_end(self, worker: _WorkerProcess, folder: Path) -> None:
        worker.process.join()
        code = worker.process.exitcode or EXIT_OK
        worker.pipe.close()
        del self._workers[worker.number]
        if worker.process.pid is not None:
            unregister_process(folder, worker.process.pid)
        if self._stopping:
            self._exit_code = max(self._exit_code, _as_exit_code(code))
        elif not self._was_ready:
            # A restart would fail for the same reason.
            self._exit_code = _as_exit_code(code) or EXIT_CUT_SHORT
            _log.error("a worker ended before it was ready", worker=worker.number, exit_code=code)
            self._end(STOP)
        else:
            pause_s = self._pauses.get(worker.number, _MIN_PAUSE_S)
            self._pauses[worker.number] = min(2 * pause_s, _MAX_PAUSE_S)
            self._restart_at[worker.number] = time.monotonic() + pause_s
            _log.error("a worker ended; it is restarted", worker=worker.number, exit_code=code, pause_s=pause_s)

    def _stop(self, number: int) -> None:
        name = signal.Signals(number).name
        if self._stopping:
            _log.warning("stopping at once", signal=name)
            self._exit_code = EXIT_CUT_SHORT
            self._end(EXIT_NOW)
        else:
            _log.info("stopping", signal=name)
            self._end(STOP)

    def _end(self, command: str) -> None:
        self._stopping = True
        self._restart_at.clear()
        # The workers keep theirs open for the grace period; the port closes with the last of them.
        self._listener.close()
        self._kill_at = time.monotonic() + GRACE_S + self._settings.drain_timeout_s + _MARGIN_S
        for worker in self._workers.values():
            worker.send(command)
            if not worker.ready:
                # It reads commands only once its modules are imported; until then it would keep the port open, and
                # connections would wait for an answer that no worker gives.
                worker.process.terminate()

    @contextmanager
    def _signal_wakeup(self) -> Iterator[socket.socket]:
        """Collect SIGTERM and SIGINT in `_signals`, and yield a socket that gets a byte for each."""
        read, write = socket.socketpair()
        read.setblocking(False)  # noqa: FBT003 - the standard library's signature
        write.setblocking(False)  # noqa: FBT003 - the same

        def on_signal(number: int, _: FrameType | None) -> None:
            self._signals.append(number)

        before = {number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        previous_fd = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        try:
            yield read
        finally:
            signal.set_wakeup_fd(previous_fd)
            for number, handler in before.items():
                signal.signal(number, handler)
            read.close()
            write.close()


def _as_exit_code(code: int) -> int:
    """Return the exit code of a worker; `multiprocessing` reports a signal as its negative number."""
    if code == -signal.SIGTERM:  # before its handler was set, so before it accepted a request
        return EXIT_OK
    return EXIT_CUT_SHORT if code < 0 else code


def _run_worker(number: int, settings: Settings, listener: socket.socket, pipe: Connection, folder: Path) -> None:
    """Run a worker process."""
    # Ctrl-C reaches every process of the terminal; only the supervisor handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from service.app import create_app
    from service.monitoring import logs
    from service.monitoring.metrics import Metrics

    logs.configure(settings.log_level, settings.log_format, worker=number)
    presence = enter(folder, f"worker-{number}")
    try:
        server = Worker(create_app(settings, metrics=Metrics(shared=folder)), settings, pipe)
        code = server.run_on(listener)
    finally:
        leave(folder, presence)
    if server.force_exit:
        # A regular exit would wait for threads that are still busy.
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
