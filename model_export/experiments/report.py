"""What an experiment gives: lines for people, tables, a plot and JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Shown

from model_export.experiments.harness import Results
from model_export.experiments.statistics import Estimate
from model_export.files import replacing, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

JSON, MARKDOWN, PLOT = "results.json", "results.md", "plot.png"
_DPI = 120


@dataclass(frozen=True)
class Table:
    """A table as text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return f"{self.title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

    def shown(self) -> Shown:
        """Return the table for a terminal."""
        table = Shown(title=escape(self.title), title_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(escape(column), justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table


@dataclass(frozen=True)
class Report:
    """The comparison of an experiment's arms.

    Attributes:
        headlines: sentences with the result and its error.
        draw: fills a figure.
        figures: for the JSON.
    """

    headlines: Sequence[str]
    tables: Sequence[Table]
    draw: Callable[[Figure], None]
    figures: dict[str, Any]


def write_report(out: Path, name: str, results: Results, report: Report, console: Console) -> None:
    """Write JSON, Markdown and the plot into a folder, and print the tables."""
    from matplotlib.figure import Figure

    content = {
        "experiment": name,
        "training_seconds": results.spent_s,
        "rates": {f"{variant}, {budget} pairs": rate for (variant, budget), rate in results.rates.items()},
        "figures": report.figures,
        "arms": [result.model_dump(mode="json") for result in results.arms.values()],
    }
    write_json(out / JSON, content)
    text = "\n".join([*(f"- {line}" for line in report.headlines), "", *(table.markdown() for table in report.tables)])
    with replacing(out / MARKDOWN) as partial:
        partial.write_text(text, encoding="utf-8")
    figure = Figure(figsize=(8.0, 4.5), dpi=_DPI, layout="constrained")
    report.draw(figure)
    with replacing(out / PLOT) as partial:
        figure.savefig(partial, format="png")
    for table in report.tables:
        console.print(table.shown())
    for line in report.headlines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def accuracy_table(results: Results) -> Table:
    """Return the accuracy of every variant at every budget, with the rate, the operations and the time."""
    rows = []
    for variant in results.variants:
        for budget in results.recipe.budgets:
            arms = results.of(variant, budget)
            seconds = Estimate.of([arm.seconds for arm in arms])
            rows.append(
                (
                    variant.name,
                    f"{budget:,}",
                    f"{results.rates[variant.name, budget]:g}",
                    Estimate.of(results.accuracies(variant, budget)).percent(),
                    f"{Estimate.of([arm.gflops for arm in arms]).mean:,.0f}",
                    f"{seconds.mean:.0f}",
                )
            )
    return Table(
        "Top-1 accuracy on the test split, %, mean of the seeds ± standard error",
        ("arm", "pairs", "rate", "accuracy", "GFLOPs", "seconds"),
        tuple(rows),
    )


def draw_curve(
    axes: Axes, places: Sequence[float], estimates: Sequence[Estimate], label: str, *, errors: int = 1, colour: str = ""
) -> None:
    """Draw accuracies in per cent, with so many standard errors to each side."""
    axes.errorbar(
        places,
        [100 * each.mean for each in estimates],
        [100 * errors * each.error for each in estimates],
        marker="o",
        capsize=3,
        label=label,
        color=colour or None,
    )


def mark_places(axes: Axes, places: Sequence[float]) -> None:
    """Make the abscissa logarithmic, with a mark at each place."""
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(places, [f"{place:,.0f}" for place in places])
