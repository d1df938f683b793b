"""Measure the load of the GPU with `nvidia-smi`; nothing without a GPU."""

import shutil
import subprocess
from types import TracebackType
from typing import Any, Self

from tests.bench.summary import median

_QUERY = "--query-gpu=utilization.gpu,memory.used,power.draw"


class GpuWatch:
    """Samples all GPUs until the end of the block, then sets `figures`."""

    def __init__(self, every_s: float = 0.2, program: str = "nvidia-smi") -> None:
        self.figures: dict[str, Any] | None = None
        self._command = [program, _QUERY, "--format=csv,noheader,nounits", f"--loop-ms={round(1_000 * every_s)}"]
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        if shutil.which(self._command[0]):
            self._process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self.figures = parse(self._process.communicate()[0])


def parse(lines: str) -> dict[str, Any] | None:
    """Turn `busy, MiB, watts` lines into medians and the peak of memory; None if no line has figures."""
    rows = []
    for line in lines.splitlines():
        try:
            busy, memory, power = (float(value) for value in line.split(","))
        except ValueError:  # a line cut off by the end, or "[N/A]"
            continue
        rows.append((busy, memory, power))
    if not rows:
        return None
    busy_percent, memory_mib, power_w = zip(*rows, strict=True)
    return {
        "busy_percent": median(busy_percent),
        "memory_mib_peak": max(memory_mib),
        "power_w": median(power_w),
        "samples": len(rows),
    }


def name() -> str | None:
    """Return the GPUs' names and driver, or None."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "; ".join(done.stdout.splitlines()) or None
