"""Table and plot of the removal of copies: groups by their size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from model_export.curation.deduplicating import DedupPlan
from model_export.files import replacing

_DPI: Final = 120


@dataclass(frozen=True)
class SizeBand:
    """Groups whose number of pictures is in a range: ``low`` to ``high``; their number, and that of their copies."""

    low: int
    high: int
    groups: int
    copies: int


def size_bands(sizes: Mapping[int, int]) -> Iterator[SizeBand]:
    """Yield 2, 3 to 4, 5 to 8 and so on, where groups have such a size."""
    low, high = 2, 2
    while low <= max(sizes, default=0):
        mine = {size: count for size, count in sizes.items() if low <= size <= high}
        if mine:
            yield SizeBand(low, high, sum(mine.values()), sum((size - 1) * count for size, count in mine.items()))
        low, high = high + 1, high * 2


def show_groups(console: Console, plan: DedupPlan) -> None:
    """Print the groups by size, and the pictures that were not compared."""
    table = Table(title="groups of copies, one picture of each is kept", title_justify="left")
    for name in ("pictures of a group", "groups", "copies dropped"):
        table.add_column(name, justify="right")
    for band in size_bands(plan.sizes):
        numbers = f"{band.low:,}" if band.low == band.high else f"{band.low:,} – {band.high:,}"
        table.add_row(numbers, f"{band.groups:,}", f"{band.copies:,}")
    if table.row_count:
        console.print(table)
    for count, why in ((plan.broken, "could not be read"), (plan.flat, "are flat: not compared as near copies")):
        if count:
            console.print(f"{count:,} of {plan.pictures:,} pictures {why}, kept", highlight=False)


def dedup_json(content: Mapping[str, Any], plan: DedupPlan) -> dict[str, Any]:
    """Return the report: the content of `dataset.json`, and the groups."""
    groups = [{"pictures": size, "groups": count} for size, count in plan.sizes.items()]
    found = {"groups": groups, "pictures": plan.pictures, "broken": plan.broken, "flat": plan.flat}
    return {**content, "dedup": found}


def write_groups_plot(path: Path, plan: DedupPlan) -> None:
    """Draw the number of groups over their size, both axes logarithmic, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    copies = sum((size - 1) * count for size, count in plan.sizes.items())
    axes.plot(list(plan.sizes), list(plan.sizes.values()), "o", color="#1f5fa8", markersize=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(1.5, 1.5 * max(2, *plan.sizes, 2))
    axes.set_ylim(0.7, 1.5 * max(1, *plan.sizes.values(), 1))
    axes.set_xlabel("pictures of a group")
    axes.set_ylabel("groups")
    axes.set_title(f"{copies:,} copies among {plan.pictures:,} pictures", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
