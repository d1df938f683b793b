"""Table and plot of a balance: pairs that queries matched, and those that were kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model_export.curation.matches import Counts
from model_export.curation.stage_report import share
from model_export.files import replacing

_SHOWN: Final = 10
_DPI: Final = 120
_MOST_POINTS: Final = 2_000


@dataclass(frozen=True)
class Band:
    """Queries whose number of matched pairs is in a range.

    Attributes:
        low: fewest pairs.
        high: most pairs.
        queries: number of queries.
        matched: sum of their pairs; a pair counts for each of its queries.
        kept: sum of those that were kept.
    """

    low: int
    high: int
    queries: int
    matched: int
    kept: int


def bands(matched: Counts, kept: Counts) -> Iterator[Band]:
    """Yield powers of ten that have queries: none, 1 to 9, 10 to 99 and so on."""
    low, high = 0, 0
    while low <= int(matched.max(initial=0)):
        mine = (matched >= low) & (matched <= high)
        if mine.any():
            yield Band(low, high, int(mine.sum()), int(matched[mine].sum()), int(kept[mine].sum()))
        low, high = high + 1, high * 10 + 9


def show_balance(console: Console, matched: Counts, kept: Counts, queries: Sequence[str], most: int) -> None:
    """Print bands of queries, and the most frequent ones by name.

    Args:
        console: of standard output.
        matched: pairs of each query before the balance, ``[queries]``.
        kept: those after it.
        queries: their texts.
        most: t.
    """
    table = Table(title=f"queries by matched pairs, at most {most:,} charged to each", title_justify="left")
    for name in ("pairs of a query", "queries", "matched", "kept", "share"):
        table.add_column(name, justify="right")
    for band in bands(matched, kept):
        numbers = f"{band.low:,}" if band.low == band.high else f"{band.low:,} – {band.high:,}"
        table.add_row(
            numbers, f"{band.queries:,}", f"{band.matched:,}", f"{band.kept:,}", share(band.kept, band.matched)
        )
    console.print(table)
    heads = Table(title="most frequent queries", title_justify="left")
    for name in ("query", "matched", "kept", "share"):
        heads.add_column(name, justify="left" if name == "query" else "right")
    for query in np.argsort(-matched, kind="stable")[:_SHOWN]:
        if before := int(matched[query]):
            after = int(kept[query])
            heads.add_row(escape(queries[query]), f"{before:,}", f"{after:,}", share(after, before))
    if heads.row_count:
        console.print(heads)


def write_balance_plot(path: Path, matched: Counts, kept: Counts, most: int) -> None:
    """Draw matched and kept pairs over the rank of the query, both axes logarithmic, as a PNG."""
    from matplotlib.figure import Figure

    order = np.argsort(-matched, kind="stable")
    order = order[matched[order] > 0]
    places = np.unique(np.geomspace(1, max(1, order.size), _MOST_POINTS).astype(np.int64)) - 1
    shown = order[places[places < order.size]]
    figure = Figure(figsize=(7, 4), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0.8, 1.25 * max(2, order.size))
    axes.set_ylim(0.8, 1.25 * max(2, most, int(matched.max(initial=0))))
    ranks = places[: shown.size] + 1
    axes.plot(ranks, matched[shown], label="matched", color="#a9c4e0", linewidth=2)
    axes.plot(ranks, np.where(kept[shown] > 0, kept[shown], np.nan), ".", label="kept", color="#1f5fa8", markersize=2)
    axes.axhline(most, label=f"t = {most:,}", color="#e08a3c", linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("query, from the most frequent")
    axes.set_ylabel("pairs that contain it")
    axes.set_title(f"{order.size:,} queries with pairs", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
