"""Run tasks on a Ray cluster, by Ray Data: a pool of actors, each with a copy of the function.

Ray Data schedules and repeats the tasks; what they read and write passes it by. So tasks and results are small, and
pickled here: an error is a result too, and comes back without Ray's traceback. See docs/adr/0031-ray-data.md.
"""

from __future__ import annotations

import contextlib
import pickle
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from model_export.drivers.local import LocalDriver
from model_export.drivers.ray_actor import Actor, Attempts, Exceeded, Setting, problem_of, versions
from model_export.drivers.ray_connection import connection, ignore_warnings, on_node, reason
from model_export.errors import DriverError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

_MOST_BLOCKS: Final = 10_000
"""Blocks of Ray Data, one task each if that is enough: Ray's memory grows with their number."""
_FEW: Final = 16
"""Tasks for threads that are not worth the start of processes."""
_NODES_WITHIN_S: Final = 120.0
_ASKED_EVERY_S: Final = 0.5


class RayDriver:
    """Runs tasks on a cluster; a context manager, which ends the connection.

    It connects when it runs the first task. A connection that this process has already is used, and kept.

    Args:
        workers: most tasks at a time; all CPUs of the cluster by default.
        address: of the cluster; by default the one that ``RAY_ADDRESS`` names or that runs on this machine, else one is
            started on this machine for this run. ``local`` always starts one.
        cpus: of each task.
        gpus: of each task.
        most_attempts: of a task whose process is killed; more than on one machine, since nodes come and go.
        seen_within_s: time for a node to see a new file.
    """

    def __init__(
        self,
        workers: int | None = None,
        address: str | None = None,
        *,
        cpus: float = 1.0,
        gpus: float = 0.0,
        most_attempts: int = 5,
        seen_within_s: float = 10.0,
    ) -> None:
        self._workers = workers
        self._address = address
        self._cpus, self._gpus = cpus, gpus
        self._most_attempts = most_attempts
        self._seen_within_s = seen_within_s
        self._tokens: list[tuple[str, str]] = []
        self._connected = contextlib.ExitStack()
        self._ray: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for path, _ in self._tokens:
            Path(path).unlink(missing_ok=True)
        self._tokens.clear()
        self._ray = None
        self._connected.close()

    def run(
        self,
        function: Callable[[_Task], _Result],
        tasks: Sequence[_Task],
        *,
        name: Callable[[_Task], str] = str,
        threads: bool = False,
    ) -> Iterator[_Result]:
        """Yield the result of each task as it comes; see `Driver`."""
        if threads and len(tasks) <= _FEW:
            yield from LocalDriver(_FEW).run(function, tasks, name=name, threads=True)
            return
        if not tasks:
            return
        ray = self._connection()
        try:
            for number, outcome in self._outcomes(function, tasks):
                if isinstance(outcome, BaseException):
                    raise outcome
                if outcome is Exceeded:
                    raise DriverError(
                        f"{name(tasks[number])}: the process was killed {self._most_attempts} times; if memory ran "
                        "out, take fewer --workers"
                    )
                yield outcome
        except ray.exceptions.RayError as error:
            raise DriverError(f"the Ray cluster failed ({reason(error)}); run the same command again") from error

    def check_folder(self, folder: Path) -> None:
        """Check that every node sees this folder of this machine; those that come later are checked when they start.

        Raises:
            DriverError: a node does not, or has other packages.
        """
        ray = self._connection()
        token = uuid.uuid4().hex
        path = folder.resolve() / f".{token}.partial"
        path.write_text(token)
        self._tokens.append((str(path), token))
        nodes = _nodes(ray)
        asked = {identity: self._ask(ray, identity) for identity in nodes}
        for identity, answer in asked.items():
            if problem := self._answer(ray, identity, answer):
                raise DriverError(f"node {nodes[identity]} {problem}")

    def _ask(self, ray: Any, identity: str) -> Any:  # noqa: ANN401 - the module, and a reference
        task = ray.remote(problem_of).options(num_cpus=0, max_retries=0, scheduling_strategy=on_node(identity))
        return task.remote(self._setting())

    def _answer(self, ray: Any, identity: str, answer: Any) -> str | None:  # noqa: ANN401 - the module, and a reference
        """Return the problem of a node; None for one that has gone meanwhile."""
        deadline = time.monotonic() + _NODES_WITHIN_S
        while True:
            try:
                found: str | None = ray.get(answer, timeout=max(0.1, deadline - time.monotonic()))
            except ray.exceptions.GetTimeoutError:
                return f"does not answer within {_NODES_WITHIN_S:.0f} s; remove it from the cluster"
            except ray.exceptions.RayError as error:
                if identity not in _nodes(ray):
                    return None
                # A node that has just started is known before tasks can be sent to it.
                if isinstance(error, ray.exceptions.RayTaskError) or time.monotonic() > deadline:
                    return f"cannot run anyclass ({reason(error)}); give every node the same packages"
            else:
                return found
            time.sleep(_ASKED_EVERY_S)
            answer = self._ask(ray, identity)

    def _outcomes(self, function: Callable[[_Task], _Result], tasks: Sequence[_Task]) -> Iterator[tuple[int, Any]]:
        """Yield the number of each task, and its result or its error."""
        ray = self._connection()
        workers = min(len(tasks), self._workers or max(1, int(ray.cluster_resources().get("CPU", 1) / self._cpus)))
        items = [{"number": number, "task": pickle.dumps(task)} for number, task in enumerate(tasks)]
        here = on_node(ray.get_runtime_context().get_node_id())
        attempts = ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=here).remote(self._most_attempts)
        data = ray.data.from_items(items, override_num_blocks=min(len(items), max(_MOST_BLOCKS, workers)))
        results = data.map(
            Actor,
            fn_constructor_args=(pickle.dumps(function), self._setting(), attempts),
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=1),
            num_cpus=self._cpus,
            num_gpus=self._gpus or None,
        )
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in batch.to_pylist():
                yield row["number"], pickle.loads(row["result"])  # noqa: S301 - pickled by an actor of ours

    def _setting(self) -> Setting:
        return Setting(
            str(Path.cwd()),
            tuple(each for each in self._tokens if Path(each[0]).exists()),
            versions(),
            self._seen_within_s,
        )

    def _connection(self) -> Any:  # noqa: ANN401 - the module
        """Return the module ``ray`` with a connection."""
        ignore_warnings()
        if self._ray is None:
            self._ray = self._connected.enter_context(connection(self._address, self._workers))
        return self._ray


def _nodes(ray: Any) -> dict[str, str]:  # noqa: ANN401 - the module
    """Return the ids of nodes that run tasks → their addresses."""
    return {
        node["NodeID"]: node["NodeManagerAddress"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("CPU")
    }
