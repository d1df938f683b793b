"""The command ``evaluate``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from model_export.cli.output import FAILED, say


def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle.")],
    data: Annotated[
        list[str],
        typer.Option(
            help="Labelled images: a Parquet file, a folder with a sub-folder for each class, or a WebDataset "
            "({000..009}.tar). Several make one set."
        ),
    ],
    *,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SET[,SET]",
            help="Sets of the bundle, seven, openai-imagenet, or JSON files. \\[default: all of the bundle's]",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="One class a line, or openai-imagenet. \\[default: the data's labels]"),
    ] = None,
    provider: Annotated[str, typer.Option(help="The execution provider.")] = "cpu",
    every: Annotated[
        int,
        typer.Option(
            min=1, help="Take the last of each N rows only: those that a run with this validation_every held out."
        ),
    ] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Draw at most this many images at random.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Images or prompts encoded at a time.")] = 64,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the provider on the CPU. \\[default: one a core]")
    ] = None,
    max_broken: Annotated[
        int, typer.Option(min=0, help="Accept this many unreadable images; with more, the exit code is 1.")
    ] = 0,
    rows: Annotated[int, typer.Option(min=1, help="Classes, and confusions, to show.")] = 20,
    plot: Annotated[Path | None, typer.Option(help="Draw template sets and confusions into this PNG file.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
    image_column: Annotated[str, typer.Option(help="Column of Parquet files with the encoded images.")] = "image",
    label_column: Annotated[str, typer.Option(help="Column of Parquet files with the classes.")] = "label",
) -> None:
    """Measure a bundle's zero-shot accuracy on labelled images, and compare template sets."""
    from model_export.evaluation.data.sources import SampleColumns
    from model_export.evaluation.plot import write_plot
    from model_export.evaluation.report import Bars, check_output, show, write_json
    from model_export.evaluation.run import Request
    from model_export.evaluation.run import evaluate as measure
    from model_export.plots import check_plot

    if plot:
        check_plot(plot, "evaluate")
    for output in filter(None, (plot, json_file)):
        check_output(output)
    request = Request(
        bundle=bundle,
        data=tuple(data),
        templates=tuple(templates or ()),
        classes=classes,
        provider=provider,
        every=every,
        limit=limit,
        batch_size=batch_size,
        threads=threads,
        columns=SampleColumns(image_column, label_column),
    )
    with Bars(Console(stderr=True)) as bars:
        found = measure(request, bars)
    console = Console()
    show(console, found, rows=rows)
    for path, write in ((plot, write_plot), (json_file, write_json)):
        if path:
            write(path, found)
            say(console, f"[green]wrote[/] {escape(str(path))}")
    if found.broken_count > max_broken:
        raise typer.Exit(FAILED)
