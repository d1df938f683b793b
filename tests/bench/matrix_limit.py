"""Measure this machine's speed of multiplying matrices: the upper limit of every image encoder.

    python matrix_limit.py DEVICE SECONDS

Needs only torch, so any environment can run it. Prints GFLOP/s by data type as JSON: the best shape's, each shape with
the median of its runs.
"""

import json
import statistics
import sys
import time

import torch

_SHAPES = ((1_600, 768, 3_072), (1_600, 3_072, 768), (2_048, 2_048, 2_048), (4_096, 4_096, 4_096))
"""Rows, inner, columns: the MLP of ViT-B/32 at batch 32, and squares."""
_FEWEST_RUNS = 3


def main() -> None:
    """Measure float32, bfloat16 and, on a GPU, float16."""
    device, seconds = sys.argv[1], float(sys.argv[2])
    torch.set_grad_enabled(mode=False)
    types = [torch.float32, torch.bfloat16, *([torch.float16] if device != "cpu" else [])]
    found = {
        str(dtype).removeprefix("torch."): max(
            _gflops(device, dtype, shape, seconds / len(_SHAPES) / len(types)) for shape in _SHAPES
        )
        for dtype in types
    }
    sys.stdout.write(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), **found}) + "\n")


def _gflops(device: str, dtype: torch.dtype, shape: tuple[int, int, int], seconds: float) -> float:
    rows, inner, columns = shape
    left = torch.randn(rows, inner, device=device).to(dtype)
    right = torch.randn(inner, columns, device=device).to(dtype)
    _timed(device, left, right)
    until, runs = time.perf_counter() + seconds, list[float]()
    while time.perf_counter() < until or len(runs) < _FEWEST_RUNS:
        runs.append(_timed(device, left, right))
    return 2 * rows * inner * columns / statistics.median(runs) / 1e9


def _timed(device: str, left: torch.Tensor, right: torch.Tensor) -> float:
    started = time.perf_counter()
    torch.matmul(left, right)
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
