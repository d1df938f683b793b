"""Metrics of all worker processes (`--workers`), whichever of them answers `/metrics`.

The workers share a folder. Their counts are in files there, which prometheus-client's multiprocess mode writes and
sums. Memory, CPU time and open files are in no file: each scrape asks the operating system, for each process that the
folder names. These figures are not summed. Each has the worker's number as the label `worker`, so that `rate` and
`changes` see which worker was replaced, and open files can be compared with the limit of each process.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, multiprocess
from prometheus_client.registry import Collector

VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder. prometheus-client reads it at its first import."""

_NUMBER_SUFFIX: Final = ".worker"
"""Suffix of an empty file `PID-NUMBER.worker`."""


def register_process(folder: Path, pid: int, number: int) -> None:
    """Add the process of worker `number` to `folder`."""
    (folder / f"{pid}-{number}{_NUMBER_SUFFIX}").touch()


def unregister_process(folder: Path, pid: int) -> None:
    """Remove an ended process from `folder`: its counters stay, its live gauges go."""
    for path in folder.glob(f"{pid}-*{_NUMBER_SUFFIX}"):
        path.unlink(missing_ok=True)
    multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


def gather(folder: Path) -> CollectorRegistry:
    """Return the summed metrics of all workers in `folder`, and the `process_…` metrics of each."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    registry.register(_Processes(folder))
    return registry


class _Processes(Collector):
    """Collects the `process_…` metrics of each worker, as prometheus-client's collector does for one process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """Read the figures of this moment; a process that has just ended gives none, or some of them."""
        families: dict[str, Metric] = {}
        for number, pid in self._running():
            for family in _process_metrics(pid):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.add_sample(sample.name, {**sample.labels, "worker": str(number)}, sample.value)
        return families.values()

    def _running(self) -> Iterator[tuple[int, int]]:
        """Yield number and pid of each worker, by number."""
        names = [path.stem.split("-") for path in self._folder.glob(f"*{_NUMBER_SUFFIX}")]
        yield from sorted((int(number), int(pid)) for pid, number in names)


def _process_metrics(pid: int) -> Iterable[Metric]:
    return ProcessCollector(pid=lambda: pid, registry=None).collect()
