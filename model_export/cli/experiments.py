"""The command that measures the paper's claims: ``experiment``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def experiment(
    name: Annotated[str, typer.Argument(metavar="NAME", help="noise, objectives, projection, prompts or scaling.")],
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the results. \\[default: experiments/NAME]")] = None,
    *,
    data: Annotated[Path | None, typer.Option(help="Folder of the data files. \\[default: the recipe's]")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads of torch; 1 is often fastest on a machine that others use. \\[default: one a core]"
        ),
    ] = None,
) -> None:
    """Measure a claim of the paper: train every arm under the same conditions. Stopped, it goes on arm by arm."""
    from model_export.experiments.run import run_experiment

    run_experiment(name, recipe, out=out, data=data, device=device, threads=threads, console=Console())
