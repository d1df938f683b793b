"""Measure the plan of a training run on 400 million rows: memory, and the time until the batch of any step is planned.

Run by ``make bench-plan``. The wanted figures are 200 MiB and one second.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from model_export.data.pairs import RowGroups
from model_export.data.plan import Phase, TrainingPlan

ROWS = 400_000_000
FILE_ROWS = 10_000
"""As img2dataset writes them: 40,000 tar files."""
GROUP_ROWS = 256
BATCH, EPOCHS, WINDOW = 32_768, 32, 64
WANTED_MIB, WANTED_S = 200, 1.0


def row_groups(rows: int) -> RowGroups:
    """Number the rows of tar files of the usual size."""
    groups = -(-FILE_ROWS // GROUP_ROWS)
    files = np.arange(0, rows, FILE_ROWS)
    bounds = np.add.outer(files, np.arange(groups) * GROUP_ROWS).ravel()
    return RowGroups(np.append(bounds, rows), files)


def report(line: str) -> None:
    """Print a line."""
    print(line)  # noqa: T201


def main() -> None:
    """Print the figures, each with the one that is wanted."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    rows = parser.parse_args().rows
    started = time.perf_counter()
    plan = TrainingPlan(
        row_groups(rows),
        held_out_every=25,
        seed=0,
        batch_size=BATCH,
        epochs=EPOCHS,
        window=WINDOW,
        phases=[Phase(0.0, 224)],
    )
    report(f"{plan.train_rows:,} rows, {plan.total_steps:,} steps: planned in {time.perf_counter() - started:.2f} s")
    slowest = 0.0
    for step in np.random.default_rng(0).integers(plan.total_steps, size=20).tolist():
        started = time.perf_counter()
        plan.batch(step)
        slowest = max(slowest, time.perf_counter() - started)
    report(f"first batch of a step, slowest of 20: {slowest:.3f} s (wanted: {WANTED_S:g} s)")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report(f"largest memory of the process: {memory:.0f} MiB (wanted: {WANTED_MIB} MiB)")


if __name__ == "__main__":
    main()
