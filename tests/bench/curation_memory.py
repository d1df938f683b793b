"""Measure the memory of a recipe with match, filter and balance, for growing numbers of made-up captions."""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from model_export.curation.progress import CurationProgress
from model_export.curation.recipe import read_recipe
from model_export.curation.recipe_stages import curation_of
from model_export.curation.run import curate
from model_export.drivers.local import LocalDriver
from tests.support.made_titles import EVEN, made_titles

PAIRS = (1_000_000, 5_000_000, 20_000_000)
_FILE = 250_000
_RECIPE = """
data.files = ["raw"]
match.queries = "queries.txt"
balance.most = 20000
[filter]
"""


def measure_memory(sizes: Sequence[int], say: Callable[[str], None]) -> None:
    """Run the recipe on each number of pairs, in a process of its own, and report the largest memory of it."""
    for pairs in sizes:
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), pairs)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                took, mib, kept = pool.apply(_run, (folder,))
        say(f"memory: {pairs:,} pairs, {kept:,} kept, one process: RSS {mib:,.0f} MiB, {took:,.0f} s of processor time")


def _write(folder: Path, pairs: int) -> None:
    texts = [text for _, text in made_titles(_FILE, 1, EVEN)]
    words = sorted({word.lower() for text in texts for word in text.split() if word.isalpha()})
    (folder / "queries.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    (folder / "recipe.toml").write_text(_RECIPE, encoding="utf-8")
    (folder / "raw").mkdir()
    for first in range(0, pairs, _FILE):
        rows = min(_FILE, pairs - first)
        table = pa.table({"id": [f"{row:010}" for row in range(first, first + rows)], "text": texts[:rows]})
        pq.write_table(table, folder / "raw" / f"{first:010}.parquet", row_group_size=65_536)


def _run(folder: str) -> tuple[float, float, int]:
    """Return seconds of processor time, MiB, and the number of pairs kept."""
    began = time.process_time()
    with CurationProgress(Console(stderr=True)) as progress:
        curation = curation_of(read_recipe(Path(folder) / "recipe.toml"), Path(folder) / "out", LocalDriver(), progress)
        made = curate(curation, progress)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return time.process_time() - began, used, int(made["rows"])
