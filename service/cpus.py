"""How many CPUs this process may use, and what they can do; ONNX Runtime minds no container's limit."""

import math
import os
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/")
_FLAG_KEYS: Final = ("flags", "Features")
"""What Linux calls them in ``/proc/cpuinfo``, on x86 and on 64-bit Arm."""


def available_cpus(root: Path = _ROOT) -> int:
    """Count the CPUs this process may use: its affinity, and in a container its quota, rounded up.

    Args:
        root: where ``sys`` is found; another folder in tests.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(root / "sys/fs/cgroup")
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cpu_flags(root: Path = _ROOT) -> frozenset[str]:
    """What the first CPU can do, in the words of Linux (``avx512f``, ``amx_bf16`` …); nothing elsewhere.

    Args:
        root: where ``proc`` is found; another folder in tests.
    """
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = (value.split() for key, _, value in (line.partition(":") for line in lines) if key.strip() in _FLAG_KEYS)
    return frozenset(next(found, ()))


def _quota(cgroup: Path) -> float | None:
    """CPUs that the container's quota is worth; None where there is none. Version 2 first, then version 1."""
    unified = _numbers(cgroup / "cpu.max")
    if unified is None:
        first, second = (_numbers(cgroup / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        unified = [*first, *second] if first and second else None
    match unified:
        case [quota, period] if quota > 0 and period > 0:  # version 1 writes -1 where there is no quota
            return quota / period
        case _:
            return None


def _numbers(path: Path) -> list[int] | None:
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):  # no such file, or "max": no quota
        return None
