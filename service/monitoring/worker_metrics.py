"""Metrics of all worker processes (`--workers`), whichever of them answers `/metrics`.

The workers share a folder. Their counts are in files there, which prometheus-client's multiprocess mode writes and
sums; those of ended workers are merged into one, so that the folder does not grow with each worker that dies. Memory,
CPU time and open files are in no file: each scrape asks the operating system, for each process that the folder names.
These figures are not summed. Each has the worker's number as the label `worker`, so that `rate` and `changes` see which
worker was replaced, and open files can be compared with the limit of each process.
"""

import logging
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import filelock
from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest, multiprocess
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.registry import Collector

VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder. prometheus-client reads it at its first import."""

_SUMMED: Final = ("counter", "histogram")
"""Kinds of metrics whose values are sums over processes, as in the names of their files, `KIND_PID.db`."""
_ENDED: Final = "ended"
"""In place of a process's number: the counts of all that have ended."""
_PATIENCE_S: Final = 5.0

_LOG: Final = logging.getLogger(__name__)

_NUMBER_SUFFIX: Final = ".worker"
"""Suffix of an empty file `PID-NUMBER.worker`."""


def register_process(folder: Path, pid: int, number: int) -> None:
    """Add the process of worker `number` to `folder`."""
    (folder / f"{pid}-{number}{_NUMBER_SUFFIX}").touch()


def unregister_process(folder: Path, pid: int, *, patience_s: float = _PATIENCE_S) -> None:
    """Remove an ended process from `folder`: its counts are added to those of earlier ones, its live gauges go.

    If a scrape does not end within `patience_s`, the counts are added when the next process ends.
    """
    for path in folder.glob(f"{pid}-*{_NUMBER_SUFFIX}"):
        path.unlink(missing_ok=True)
    multiprocess.mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
    with suppress(filelock.Timeout), _lock(folder, patience_s):
        living = {path.stem.partition("-")[0] for path in folder.glob(f"*{_NUMBER_SUFFIX}")}
        for kind in _SUMMED:
            ended = [path for path in folder.glob(f"{kind}_*.db") if path.stem.partition("_")[2] not in living]
            _merge(ended, folder / f"{kind}_{_ENDED}.db")


def render(folder: Path, *, patience_s: float = _PATIENCE_S) -> bytes:
    """Return the summed metrics of all workers in `folder`, and the `process_…` metrics of each, as text.

    Counts are never read while those of an ended worker move from one file to another: they would be missing, or count
    twice.
    """
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    registry.register(_Processes(folder))
    lock = _lock(folder, patience_s)
    with suppress(filelock.Timeout):  # better inexact than none
        lock.acquire()
    try:
        return generate_latest(registry)
    finally:
        lock.release()


def _lock(folder: Path, patience_s: float) -> filelock.BaseFileLock:
    return filelock.FileLock(folder / "files.lock", timeout=patience_s)


def _merge(files: Sequence[Path], merged: Path) -> None:
    """Replace `files` by one with the sums of their values. A file that cannot be read is dropped."""
    if files == [merged]:
        return
    sums: dict[str, float] = {}
    for path in files:
        try:
            entries = list(MmapedDict.read_all_values_from_file(path))  # type: ignore[no-untyped-call]
        except (OSError, RuntimeError, ValueError, struct.error) as exc:  # killed while it created the file
            _LOG.warning("the counts of an ended worker are lost: %s", type(exc).__name__)
            continue
        for key, value, *_ in entries:
            sums[key] = sums.get(key, 0.0) + value
    temporary = merged.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    content = MmapedDict(str(temporary))  # type: ignore[no-untyped-call]
    for key, value in sums.items():
        content.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    content.close()  # type: ignore[no-untyped-call]
    temporary.replace(merged)
    for path in files:
        if path != merged:
            path.unlink()


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
