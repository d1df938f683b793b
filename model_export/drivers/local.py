"""Run tasks in processes of this machine.

The task of a process that is killed goes to another one. Processes end with the one that started them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from model_export.errors import DriverError, ModelExportError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

_MOST_ATTEMPTS: Final = 3
_SPAWN: Final = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class LocalDriver:
    """Runs tasks in this process for one worker, else in several.

    Attributes:
        workers: number of processes.
        started: called with the id of each process.
    """

    workers: int = 1
    started: Callable[[int], None] = lambda _: None

    def run(
        self,
        function: Callable[[_Task], _Result],
        tasks: Sequence[_Task],
        *,
        name: Callable[[_Task], str] = str,
        threads: bool = False,
    ) -> Iterator[_Result]:
        """Yield the result of each task as it comes; see `Driver`."""
        if self.workers == 1 or len(tasks) < 2:
            yield from map(function, tasks)
        elif threads:
            yield from _in_threads(function, tasks, self.workers)
        else:
            yield from _in_processes(function, tasks, name, self)

    def check_folder(self, folder: Path) -> None:
        """Do nothing: the processes of a machine see the same folders."""


def _in_threads(function: Callable[[_Task], _Result], tasks: Sequence[_Task], workers: int) -> Iterator[_Result]:
    with ThreadPoolExecutor(workers) as threads:
        try:
            for done in as_completed([threads.submit(function, task) for task in tasks]):
                yield done.result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


def _in_processes(
    function: Callable[[_Task], _Result], tasks: Sequence[_Task], name: Callable[[_Task], str], driver: LocalDriver
) -> Iterator[_Result]:
    pool = _Pool(function, tasks, name, driver.started)
    try:
        pool.start(min(driver.workers, len(tasks)))
        yield from pool.results()
    finally:
        pool.end()


@dataclass
class _Worker:
    """A process, our end of its pipe, and the number of its task."""

    process: SpawnProcess
    pipe: Connection
    task: int | None = None


class _Pool(Generic[_Task, _Result]):
    def __init__(
        self,
        function: Callable[[_Task], _Result],
        tasks: Sequence[_Task],
        name: Callable[[_Task], str],
        started: Callable[[int], None],
    ) -> None:
        self._function = function
        self._tasks = tasks
        self._name = name
        self._started = started
        self._waiting = deque(range(len(tasks)))
        self._attempts = [0] * len(tasks)
        self._workers: list[_Worker] = []

    def start(self, count: int) -> None:
        """Start processes."""
        for _ in range(count):
            ours, theirs = _SPAWN.Pipe()
            process = _SPAWN.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            worker = _Worker(process, ours)
            self._workers.append(worker)
            self._started(process.pid or 0)
            self._send(worker, self._function)

    def results(self) -> Iterator[_Result]:
        """Yield results until each task has one."""
        for worker in list(self._workers):
            self._give(worker)
        while self._workers:
            ready = wait([worker.pipe for worker in self._workers])
            for worker in [each for each in self._workers if each.pipe in ready]:
                try:
                    outcome = worker.pipe.recv()
                except (EOFError, OSError):
                    self._replace(worker)
                    continue
                if isinstance(outcome, BaseException):
                    raise outcome
                worker.task = None
                self._give(worker)
                yield outcome

    def end(self) -> None:
        """End all processes, whatever they do."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
        self._workers.clear()

    def _give(self, worker: _Worker) -> None:
        """Send the next task to a process, or end the process."""
        if not self._waiting:
            self._remove(worker)
            return
        worker.task = self._waiting.popleft()
        self._attempts[worker.task] += 1
        self._send(worker, self._tasks[worker.task])

    def _replace(self, worker: _Worker) -> None:
        """Start another process in place of one that was killed, and give its task to the next."""
        self._remove(worker)
        if worker.task is not None:
            if self._attempts[worker.task] == _MOST_ATTEMPTS:
                raise DriverError(
                    f"{self._name(self._tasks[worker.task])}: the process was killed {_MOST_ATTEMPTS} times, the last "
                    f"time with exit code {worker.process.exitcode}; if memory ran out, take fewer --workers"
                )
            self._waiting.appendleft(worker.task)
        self.start(1)
        self._give(self._workers[-1])

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.join()

    @staticmethod
    def _send(worker: _Worker, content: Any) -> None:  # noqa: ANN401 - a function or a task
        with contextlib.suppress(OSError):  # it was killed; the pipe says so when it is read
            worker.pipe.send(content)


def _serve(pipe: Connection) -> None:
    """Answer tasks until the pipe is closed. Ctrl-C ends the process that started this one, and with it this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        function = pipe.recv()
        while True:
            task = pipe.recv()
            try:
                outcome: Any = function(task)
            except ModelExportError as error:
                outcome = error
            except Exception as error:  # noqa: BLE001 - a mistake of ours: raised again by the process that sent the task
                error.add_note(traceback.format_exc())
                outcome = error
            pipe.send(outcome)
    except (EOFError, OSError):
        return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
