"""Counts the CPUs this process may use and reads their features; ONNX Runtime ignores a container's limit."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

_ROOT: Final = Path("/")
_FLAG_KEYS: Final = ("flags", "Features")
"""Linux's names for them in ``/proc/cpuinfo``, on x86 and on 64-bit Arm."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """A CPU's vendor (``AuthenticAMD``), flags (``amx_bf16``) and model, as Linux names them."""

    vendor: str = ""
    flags: frozenset[str] = frozenset()
    model: str = ""

    @property
    def has_bf16(self) -> bool:
        """Whether it has instructions for bf16."""
        return bool({"amx_bf16", "avx512_bf16"} & self.flags)

    @property
    def has_fast_bf16(self) -> bool:
        """Whether it multiplies matrices in bf16 about twice as fast as in fp32, or faster.

        AMX is about five times as fast. AVX-512's instructions are twice as fast on AMD's CPUs, and slower than fp32 on
        Intel's: docs/providers.md has the figures.
        """
        return "amx_bf16" in self.flags or ("avx512_bf16" in self.flags and self.vendor == "AuthenticAMD")


def available_cpus(root: Path = _ROOT) -> int:
    """Count the CPUs this process may use: its affinity, and the smallest quota of its cgroups, rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in _cgroups(root) if (quota := _quota(folder)) is not None]
    return max(1, min([allowed, *map(math.ceil, quotas)]))


def this_cpu(root: Path = _ROOT) -> Cpu:
    """Return vendor, flags and model of the first CPU; empty if Linux does not list them."""
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return Cpu()
    entries = [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]
    vendor = next((value for key, value in entries if key == "vendor_id"), "")
    flags = next((value for key, value in entries if key in _FLAG_KEYS), "")
    model = next((value for key, value in entries if key == "model name"), "")
    return Cpu(vendor, frozenset(flags.split()), model)


def _cgroups(root: Path) -> Iterator[Path]:
    """Yield the folders of the groups whose quota applies to this process: its own and its parents, of version 2 or 1.

    In a container its own group is at the top; for a systemd service it is further down.
    """
    unified, cpu = root / "sys/fs/cgroup", root / "sys/fs/cgroup/cpu"
    yield from (unified, cpu)
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        top = unified if not controllers else cpu if "cpu" in controllers.split(",") else None
        if top is not None:
            own = PurePosixPath(path.lstrip("/"))
            yield from (top / group for group in (own, *own.parents))


def _quota(cgroup: Path) -> float | None:
    """Return a group's quota in CPUs, None if it has none. Version 2 first, then version 1."""
    unified = _numbers(cgroup / "cpu.max")
    if unified is None:
        first, second = (_numbers(cgroup / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        unified = [*first, *second] if first and second else None
    match unified:
        case [quota, period] if quota > 0 and period > 0:  # -1 means no quota in version 1
            return quota / period
        case _:
            return None


def _numbers(path: Path) -> list[int] | None:
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):  # no such file, or "max": no quota
        return None
