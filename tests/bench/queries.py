"""Time the making of a query list from made-up text, and its memory, and reckon them for 1 GB.

Run by ``make bench-queries``. Wanted are ten minutes for 1 GB with two processes, and 2 GB of memory.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from model_export.curation.progress import CurationProgress
from model_export.curation.query_sources import QuerySources, make_queries
from model_export.drivers.local import LocalDriver
from tests.bench.matching import SYLLABLES, report

WORDS = 1_000_000
WANTED_S, WANTED_MB = 600, 2_000
LINE = 20


def write_text(path: Path, megabytes: int) -> None:
    """Write lines of words by Zipf's law."""
    rng = np.random.default_rng(0)
    vocabulary = np.array(
        ["".join(SYLLABLES[i] for i in rng.integers(90, size=1 + n % 5)) + str(n) for n in range(WORDS)]
    )
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 10**6:
            words = vocabulary[np.minimum(rng.zipf(1.15, size=200_000), WORDS) - 1].tolist()
            file.writelines(" ".join(words[at : at + LINE]) + ".\n" for at in range(0, len(words), LINE))


def main() -> None:
    """Print time and memory."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--megabytes", type=int, default=1_000)
    parser.add_argument("--workers", type=int, default=2)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, CurationProgress(Console(stderr=True)) as progress:
        path = Path(folder) / "text.txt"
        write_text(path, wanted.megabytes)
        started = time.monotonic()
        found = make_queries(QuerySources([str(path)]), progress, driver=LocalDriver(wanted.workers))
        took, size = time.monotonic() - started, path.stat().st_size / 1e6
    of_parent, of_children = (
        resource.getrusage(who).ru_maxrss / 1000 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    report(f"{size:,.0f} MB, {wanted.workers} processes: {len(found):,} queries in {took:.0f} s")
    report(f"1 GB at this rate: {took * 1000 / size:.0f} s (wanted: {WANTED_S})")
    memory = of_parent + wanted.workers * of_children * (wanted.workers > 1)
    report(f"memory at most: {memory:,.0f} MB (wanted: {WANTED_MB:,})")
    report(f"this process {of_parent:,.0f} MB, the largest other one {of_children:,.0f} MB")


if __name__ == "__main__":
    main()
