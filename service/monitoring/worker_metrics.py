"""How the metrics of several processes on one port (`--workers`) come together, whichever of them answers `/metrics`.

They share a folder. What each counts is in files there, which prometheus-client's multiprocess mode writes and sums.
What the operating system knows of each (memory, CPU time, open files) is in no such file: it is asked when `/metrics`
is, for each process that the folder names. These figures are not summed. Each has the process' number as `worker`, so
that `rate` and `changes` see which one was replaced, and open files stand beside the limit that holds for each process.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, multiprocess
from prometheus_client.registry import Collector

VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder. prometheus-client reads it itself, when it is first imported."""

_NUMBER_SUFFIX: Final = ".worker"
"""Of an empty file `PID-NUMBER.worker`."""


def remember_process(folder: Path, pid: int, number: int) -> None:
    """A process has begun to share `folder`; it is the worker of that number."""
    (folder / f"{pid}-{number}{_NUMBER_SUFFIX}").touch()


def forget_process(folder: Path, pid: int) -> None:
    """A process that shared `folder` is gone: what it counted stays, what it was just doing does not."""
    for path in folder.glob(f"{pid}-*{_NUMBER_SUFFIX}"):
        path.unlink(missing_ok=True)
    multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


def gather(folder: Path) -> CollectorRegistry:
    """What all processes that share `folder` have counted, and the `process_…` figures of each."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    registry.register(_Processes(folder))
    return registry


class _Processes(Collector):
    """Does for each process what prometheus-client's own collector does for one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """Read what is there at this moment; of a process that has just ended there is nothing, or a part."""
        together: dict[str, Metric] = {}
        for number, pid in self._running():
            for family in _figures(pid):
                of_all = together.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    of_all.add_sample(sample.name, {**sample.labels, "worker": str(number)}, sample.value)
        return together.values()

    def _running(self) -> Iterator[tuple[int, int]]:
        """Number and pid of each process, in order."""
        names = [path.stem.split("-") for path in self._folder.glob(f"*{_NUMBER_SUFFIX}")]
        yield from sorted((int(number), int(pid)) for pid, number in names)


def _figures(pid: int) -> Iterable[Metric]:
    return ProcessCollector(pid=lambda: pid, registry=None).collect()
