"""Counts of worker processes in files, without the processes: the files are written as prometheus-client does."""

import math
from collections.abc import Iterator
from pathlib import Path

import filelock
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.parser import text_string_to_metric_families

from service.monitoring.worker_metrics import register_process, render, unregister_process


def write(path: Path, metric: str, values: dict[tuple[str, str], float]) -> None:
    """Write a file of one process: values by name and by the value of the label `l`, for a bucket `le`."""
    content = MmapedDict(str(path))  # type: ignore[no-untyped-call]
    for (name, label), value in values.items():
        labels = {"le": label} if name.endswith("_bucket") else {"l": label}
        key = mmap_key(metric, name, list(labels), list(labels.values()), "Help.")
        content.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
    content.close()  # type: ignore[no-untyped-call]


def work(folder: Path, pid: int, requests: float) -> None:
    """Begin a process that answers some requests, half of them within a second."""
    register_process(folder, pid, 0)
    write(folder / f"counter_{pid}.db", "requests", {("requests_total", "a"): requests, ("requests_total", "b"): 1.0})
    seconds = {("seconds_sum", "x"): 2.5, ("seconds_bucket", "1.0"): requests, ("seconds_bucket", "+Inf"): requests}
    write(folder / f"histogram_{pid}.db", "seconds", seconds)
    write(folder / f"gauge_livesum_{pid}.db", "waiting", {("waiting", "a"): 7.0})


def shown(folder: Path) -> dict[tuple[str, str], float]:
    """Return all samples but those of the operating system."""

    def samples() -> Iterator[tuple[tuple[str, str], float]]:
        for family in text_string_to_metric_families(render(folder).decode()):
            for sample in family.samples:
                if not family.name.startswith("process_"):
                    yield (sample.name, str(sorted(sample.labels.items()))), sample.value

    return dict(samples())


def test_the_counts_of_ended_processes_stay_in_two_files(tmp_path: Path) -> None:
    """No counter goes back when a process ends, and the folder does not grow."""
    work(tmp_path, 1, 3.0)
    before = shown(tmp_path)
    for pid in range(2, 7):
        work(tmp_path, pid, math.pi * pid)
        both = shown(tmp_path)
        assert all(value <= both[series] for series, value in before.items())
        unregister_process(tmp_path, pid)
        before = shown(tmp_path)
        ended = {series: value for series, value in both.items() if not series[0].startswith("waiting")}
        assert ended == {series: before[series] for series in ended}
    assert 7.0 == before["waiting", "[('l', 'a')]"]
    files = {path.name for path in tmp_path.glob("*.db")}
    assert files == {
        "counter_1.db", "histogram_1.db", "gauge_livesum_1.db", "counter_ended.db", "histogram_ended.db"
    }  # fmt: skip
    unregister_process(tmp_path, 1)
    assert {"counter_ended.db", "histogram_ended.db"} == {path.name for path in tmp_path.glob("*.db")}


def test_a_file_that_a_killed_process_was_creating_is_dropped(tmp_path: Path) -> None:
    """prometheus-client cannot read it, so every scrape would fail."""
    work(tmp_path, 1, 3.0)
    register_process(tmp_path, 2, 1)
    (tmp_path / "counter_2.db").write_bytes(b"")
    (tmp_path / "histogram_2.db").write_bytes(b"\xff" * 100)
    unregister_process(tmp_path, 2)
    assert 3.0 == shown(tmp_path)["requests_total", "[('l', 'a')]"]


def test_counts_that_a_scrape_holds_are_merged_later(tmp_path: Path) -> None:
    """The supervisor does not wait for a scrape that hangs."""
    for pid in (1, 2):
        work(tmp_path, pid, 3.0)
    with filelock.FileLock(tmp_path / "files.lock"):
        unregister_process(tmp_path, 1, patience_s=0.05)
        assert b'requests_total{l="a"} 6.0' in render(tmp_path, patience_s=0.05)
    assert (tmp_path / "counter_1.db").exists()
    unregister_process(tmp_path, 2)
    assert {"counter_ended.db", "histogram_ended.db"} == {path.name for path in tmp_path.glob("*.db")}
    assert 6.0 == shown(tmp_path)["requests_total", "[('l', 'a')]"]
