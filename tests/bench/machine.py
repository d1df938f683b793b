"""Describe the machine of a measurement, without its name."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from service.model.engine.cpus import available_cpus

_FLAGS: Final = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16")
_PACKAGES: Final = ("onnxruntime", "onnxruntime-gpu", "openvino", "numpy", "pillow", "uvicorn", "torch")


def describe() -> dict[str, Any]:
    """Return processor, notable instruction sets, cores, memory (GiB), system and versions of the runtimes."""
    cpu = _fields(Path("/proc/cpuinfo"))
    memory = _fields(Path("/proc/meminfo")).get("MemTotal", "").split()
    flags = cpu.get("flags", "").split()
    return {
        "processor": cpu.get("model name") or platform.processor() or platform.machine(),
        "instruction_sets": [flag for flag in _FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "cores_usable": available_cpus(),
        "memory_gib": round(int(memory[0]) / 2**20, 1) if memory else None,
        "cgroup_memory_gib": _cgroup_memory_gib(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _fields(path: Path) -> dict[str, str]:
    """Read `name: value` lines; the first of each name counts."""
    found: dict[str, str] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    return found


def _cgroup_memory_gib() -> float | None:
    for path in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if path.exists() and (limit := path.read_text().strip()).isdigit() and int(limit) < 2**60:
            return round(int(limit) / 2**30, 1)
    return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
