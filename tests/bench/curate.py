"""Time the stages of curation: `make bench-curate`, or with BENCH_ARGS the names of some parts.

Each part prints its figure and the limit it is held to.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from model_export.curation.balance import Balance, BalanceSettings, Method
from model_export.curation.balancing import Passes, count_matches, plan_balance
from model_export.curation.text_filter import TextFilter
from service.model.manifest import DEMO_BUNDLE
from tests.bench import pictures
from tests.bench.copies import measure_dedup
from tests.bench.curation_memory import PAIRS, measure_memory
from tests.bench.embedding import measure_embedding
from tests.support.made_titles import EVEN, YFCC, made_titles
from tests.support.matched import write_shards, zipf_pairs

_TITLES = 100_000
_PAIRS = 10_000_000
_QUERIES = 500_000
_SHARDS = 20
_MOST = 20_000


def time_filter() -> None:
    """Time the text filter on made titles, on one core."""
    stage = TextFilter()
    for name, mixture in (("half natural", EVEN), ("like YFCC100M", YFCC), ("all natural", {"keep": 1})):
        texts = pa.array([text for _, text in made_titles(_TITLES, 1, mixture)])
        stage.reasons(texts.slice(0, 1_000))  # loads the model
        start = time.process_time()
        stage.reasons(texts)
        took = time.process_time() - start
        _say(f"filter, {name}: {_TITLES / took:,.0f} titles/s a core (at least 20,000)")


def time_balance() -> None:
    """Time both methods of the balance on ten million pairs and 500,000 queries, in two processes."""
    with tempfile.TemporaryDirectory() as folder:
        each = _PAIRS // _SHARDS
        shards = []
        for number in range(_SHARDS):
            place = Path(folder) / f"{number:02}"
            place.mkdir()
            shards += write_shards(place, zipf_pairs(each, _QUERIES, 1, number * each))
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            passes = Passes(shards, pool.imap_unordered)
            for method in Method:
                start = time.perf_counter()
                matched = count_matches(passes, _QUERIES)
                plan = plan_balance(passes, BalanceSettings(method, _MOST), matched)
                planned = time.perf_counter() - start
                kept = sum(pool.imap_unordered(_Select(plan), shards))
                took = time.perf_counter() - start
                _say(
                    f"balance, {method}: {_PAIRS:,} pairs, {_QUERIES:,} queries, {(matched > _MOST).sum()} above "
                    f"{_MOST:,}: {took:.0f} s (at most 300), of which {planned:.0f} s to plan; {kept:,} pairs kept"
                )
        own, others = (
            resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        _say(f"balance: RSS {own:,.0f} MiB, and {others:,.0f} MiB of the largest process")


class _Select:
    """Run the stage over a shard, as the driver does, and count the pairs it keeps."""

    def __init__(self, stage: Balance) -> None:
        self._stage = stage

    def __call__(self, name: str) -> int:
        batches = pq.ParquetFile(name).iter_batches(131_072)
        return sum(self._stage.run(pa.Table.from_batches([batch])).kept.num_rows for batch in batches)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - the result


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "filter": lambda _: time_filter(),
    "balance": lambda _: time_balance(),
    "dedup": lambda given: measure_dedup(given.pictures),
    "memory": lambda given: measure_memory(given.pairs, _say),
    "embed": lambda given: measure_embedding(given.bundle, given.provider, given.rows, tuple(given.size)),
}


def main() -> None:
    """Run the named parts, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of: {', '.join(PARTS)} (all)")
    parser.add_argument(
        "--pictures", nargs="+", default=[], metavar="FILE", help="Parquet files for dedup (random pictures)"
    )
    parser.add_argument("--pairs", nargs="+", type=int, default=PAIRS, metavar="N", help="numbers of pairs for memory")
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE, help="for embed (the demo)")
    parser.add_argument("--provider", default="cpu", help="for embed (cpu)")
    parser.add_argument("--rows", type=int, default=1_024, help="pictures for embed (1024)")
    parser.add_argument("--size", type=int, nargs=2, default=pictures.USUAL, help="of the pictures for embed")
    given = parser.parse_args()
    for name in given.parts or PARTS:
        PARTS[name](given)


if __name__ == "__main__":
    main()
