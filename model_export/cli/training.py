"""The commands that train: ``train`` and ``average``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from model_export.cli.output import say, stop


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run. \\[default: runs/NAME]")] = None,
    *,
    data: Annotated[Path | None, typer.Option(help="Folder of the data files. \\[default: the recipe's]")] = None,
    start_from: Annotated[
        Path | None, typer.Option("--from", help="Start with the weights and the tokenizer of this finished run.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads of torch; 1 is often fastest on a machine that others use. \\[default: one a core]"
        ),
    ] = None,
) -> None:
    """Train a CLIP from image–text pairs, by a recipe."""
    from model_export.training.run import train as run_training

    run_training(
        recipe,
        out=out,
        data=data,
        start_from=start_from,
        resume=resume,
        device=device,
        threads=threads,
        console=Console(),
    )


def average(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Two or more finished training runs that started from the same weights."),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    *,
    shares: Annotated[
        str | None, typer.Option(metavar="N,N", help="Weight of each run in the mean. \\[default: equal]")
    ] = None,
) -> None:
    """Write a run whose weights are the mean of several runs' weights."""
    from model_export.training.averaging import average as write_mean

    try:
        numbers = [float(share) for share in shares.split(",")] if shares else []
    except ValueError:
        stop(f"--shares {shares}: is not a list of numbers such as 1,1,2")
    write_mean(runs, out, shares=numbers)
    say(Console(), f"[green]wrote[/] {escape(str(out))}: the mean of {len(runs)} runs")
