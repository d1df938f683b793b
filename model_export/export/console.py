"""Print the progress and the results of exports, reductions and verifications."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model_export.bundles.verification import Report
from model_export.graphs.graph_files import Graph
from service.model.manifest import Agreement, ImageSection


class Narrator:
    """Prints the steps of an export or of a reduction to a lower precision."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def introduce(self, name: str, architecture: str, image: ImageSection, *more: str) -> None:
        """Print the name and the size of the model."""
        self.say(f"[bold]{escape(name)}[/]: {', '.join((architecture, f'{image.height}×{image.width} pixels', *more))}")

    def wrote(self, graph: Graph) -> None:
        """Print one line about a graph."""
        self.say(
            f"{graph.file:20} {graph.nodes:5,} nodes  {graph.weights / 1e6:8.2f}M weights  "
            f"{size(graph.bytes):>9}  {graph.seconds:6.1f} s"
        )

    def measured(self, report: Report) -> None:
        """Print the comparison with the reference as a table."""
        show(self.console, report)

    def agreed(self, agreement: Agreement) -> None:
        """Print the agreement of a reduced precision with fp32."""
        self.say(
            f"compared with fp32 on {agreement.images:,} images and {agreement.labels} labels of "
            f"{escape(agreement.data)}: the same answer for {agreement.top1:.1%}; "
            f"cosine of images {agreement.mean_image_cosine:.4f} (worst {agreement.min_image_cosine:.4f}), "
            f"of texts {agreement.mean_text_cosine:.4f} (worst {agreement.min_text_cosine:.4f})"
        )

    def say(self, line: str) -> None:
        """Print a line of markup, never wrapped."""
        self.console.print(line, highlight=False, soft_wrap=True)


def show(console: Console, report: Report) -> None:
    """Print the checks of a verification as a table."""
    table = Table(caption=f"{report.seconds:.1f} s", caption_justify="right")
    table.add_column("check")
    table.add_column("")
    table.add_column("max difference", justify="right")
    table.add_column("min cosine", justify="right")
    table.add_column("", overflow="fold")
    for check in report.checks:
        table.add_row(
            check.name,
            "[green]ok[/]" if check.passed else "[red bold]FAILED[/]",
            "" if check.max_abs_difference is None else f"{check.max_abs_difference:.1e}",
            "" if check.min_cosine is None else f"{check.min_cosine:.7f}",
            escape(check.detail),
        )
    console.print(table)


def size(count: int) -> str:
    """Format a number of bytes."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
