import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.model.engine.cpus import Cpu, available_cpus, this_cpu

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
        # a service of systemd: the quota is its own, or that of a group above it
        ({"proc/self/cgroup": "0::/a.slice/b\n", "sys/fs/cgroup/a.slice/b/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a.slice/b\n", "sys/fs/cgroup/a.slice/cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/a.slice/b\n", "sys/fs/cgroup/other/cpu.max": "100000 100000\n"}, ALLOWED),
        (
            {
                "proc/self/cgroup": "7:memory:/m\n3:cpu,cpuacct:/a\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "100000",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        ({"proc/self/cgroup": "nonsense\n"}, ALLOWED),
    ],
)
def test_a_containers_quota_counts(tmp_path: Path, files: dict[str, str], expected: int) -> None:
    """In cgroups of version 2 and 1, rounded up; without one, every CPU that the process may use."""
    assert expected == available_cpus(_write(tmp_path, files))


def test_the_cpu_is_the_first_one(tmp_path: Path) -> None:
    """Its flags under the name that x86 or Arm has for them; nothing where Linux does not tell."""
    assert Cpu() == this_cpu(tmp_path)
    x86 = (
        "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu amx_bf16\nvmx flags\t: ept\n\n"
        "processor\t: 1\nvendor_id\t: Other\nflags\t\t: fpu\n"
    )
    expected = Cpu("GenuineIntel", frozenset({"fpu", "amx_bf16"}))
    assert expected == this_cpu(_write(tmp_path / "x86", {"proc/cpuinfo": x86}))
    arm = this_cpu(_write(tmp_path / "arm", {"proc/cpuinfo": "Features\t: fp bf16\n"}))
    assert Cpu("", frozenset({"fp", "bf16"})) == arm
    assert Cpu() == this_cpu(_write(tmp_path / "other", {"proc/cpuinfo": "cpu: POWER9\n"}))


@pytest.mark.parametrize(
    ("vendor", "flag", "there", "fast"),
    [
        ("GenuineIntel", "amx_bf16", True, True),
        ("GenuineIntel", "avx512_bf16", True, False),
        ("AuthenticAMD", "avx512_bf16", True, True),
        ("AuthenticAMD", "avx512f", False, False),
    ],
)
def test_where_bf16_is_fast(vendor: str, flag: str, *, there: bool, fast: bool) -> None:
    """An instruction for it is not enough: Intel's CPUs without AMX are slower with it than without."""
    cpu = Cpu(vendor, frozenset({flag}))
    assert (there, fast) == (cpu.has_bf16, cpu.has_fast_bf16)
