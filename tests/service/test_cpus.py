import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cpus import available_cpus, cpu_flags

ALLOWED = len(os.sched_getaffinity(0))


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


@pytest.fixture
def one_cpu() -> Iterator[None]:
    """Let this thread run on one CPU only."""
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def test_cpus_are_those_of_this_process(one_cpu: None) -> None:
    """Not those of the whole machine."""
    assert 1 == available_cpus()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ALLOWED),
        ({"sys/fs/cgroup/cpu.max": "max 100000\n"}, ALLOWED),
        ({"sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "110000 100000\n"}, min(2, ALLOWED)),
        ({"sys/fs/cgroup/cpu.max": "20000 100000\n"}, 1),
        ({"sys/fs/cgroup/cpu.max": "99900000 100000\n"}, ALLOWED),
        ({"sys/fs/cgroup/cpu.max": "nonsense\n"}, ALLOWED),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, ALLOWED),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000"}, ALLOWED),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "0"}, ALLOWED),
    ],
)
def test_a_containers_quota_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    """In cgroups of version 2 and 1, rounded up; without one, every CPU that the process may use."""
    assert expected == available_cpus(_write(tmp_path, files))


def test_flags_are_those_of_the_first_cpu(tmp_path: Path) -> None:
    """Under the name that x86 or Arm has for them; none where Linux does not tell."""
    assert frozenset() == cpu_flags(tmp_path)
    x86 = "processor\t: 0\nflags\t\t: fpu amx_bf16\nvmx flags\t: ept\n\nprocessor\t: 1\nflags\t\t: fpu\n"
    assert {"fpu", "amx_bf16"} == cpu_flags(_write(tmp_path / "x86", {"proc/cpuinfo": x86}))
    assert {"fp", "bf16"} == cpu_flags(_write(tmp_path / "arm", {"proc/cpuinfo": "Features\t: fp bf16\n"}))
    assert frozenset() == cpu_flags(_write(tmp_path / "other", {"proc/cpuinfo": "cpu: POWER9\n"}))
