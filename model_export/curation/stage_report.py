"""Table of a curation: pairs that went into each stage, and why they were dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def show_stages(console: Console, stages: Sequence[Mapping[str, Any]]) -> None:
    """Print the stages of `dataset.json`, with a line for each reason.

    Args:
        console: of standard output.
        stages: name, ``in``, ``out``, ``dropped`` and ``notes`` of each.
    """
    table = Table()
    for name in ("stage", "pairs", "share"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in stages:
        total = stage["in"]
        table.add_row(f"[bold]{escape(stage['name'])}[/]", f"{total:,}", "")
        for reason, count in sorted(stage["dropped"].items(), key=lambda each: (-each[1], each[0])):
            table.add_row(f"  {escape(reason)}", f"{-count:,}", share(count, total))
        for note, count in sorted(stage["notes"].items()):
            table.add_row(f"  {escape(note)}, kept", f"{count:,}", share(count, total))
        table.add_row("  kept", f"{stage['out']:,}", share(stage["out"], total))
    console.print(table)


def share(part: int, whole: int) -> str:
    """Return a part in percent of the whole; a dash if the whole is nothing."""
    return f"{100 * part / whole:.1f}%" if whole else "–"
