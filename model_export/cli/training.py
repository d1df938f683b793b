"""The commands that train: ``train`` and ``average``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from model_export.architectures.activations import Activation
from model_export.cli.output import INTERRUPTED, PACKAGE_MISSING, WRONG_INPUT, say, stop

if TYPE_CHECKING:
    from model_export.checkpoints.model_source import SourceOptions


_Arch = Annotated[str | None, typer.Option(help="A name from 'list', for a SOURCE without a configuration.")]
_Activation = Annotated[Activation | None, typer.Option(help="For a SOURCE whose configuration does not name it.")]
_Tokenizer = Annotated[Path | None, typer.Option(help="tokenizer.json or a BPE vocabulary, for a SOURCE without one.")]


def train(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run. \\[default: runs/NAME]")] = None,
    *,
    data: Annotated[Path | None, typer.Option(help="Folder of the data files. \\[default: the recipe's]")] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="SOURCE",
            help="Start with the weights, the tokenizer and the preprocessing of this run, or of any checkpoint or hub "
            "id that 'export' reads.",
        ),
    ] = None,
    arch: _Arch = None,
    activation: _Activation = None,
    tokenizer: _Tokenizer = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    auto_resume: Annotated[
        bool, typer.Option("--auto-resume", help="Continue from the newest checkpoint, or start if the run has none.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads of torch; 1 is often fastest on a machine that others use. \\[default: one a core]"
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Train in this many processes on this machine, one for each GPU.")
    ] = 1,
    restarts: Annotated[
        int, typer.Option(min=0, help="Start the processes again this many times if one fails, with --auto-resume.")
    ] = 0,
) -> None:
    """Train a CLIP from image–text pairs, by a recipe. torchrun starts it in many processes, on many machines."""
    if processes > 1 or restarts:
        from model_export.training.launch import launch

        final = {WRONG_INPUT, PACKAGE_MISSING, INTERRUPTED}
        code = launch(_repeated(context), processes=processes, restarts=restarts, final=final, threads=threads)
        raise SystemExit(code)
    from model_export.training.run import train as run_training

    run_training(
        recipe,
        out=out,
        data=data,
        start_from=start_from,
        start_options=_options(arch, activation, tokenizer),
        resume=resume,
        auto_resume=auto_resume,
        device=device,
        threads=threads,
        console=Console(),
    )


def _repeated(context: typer.Context) -> list[str]:
    """Return the arguments of this command, for its processes: all but those that say how many these are."""
    arguments = [context.info_name or ""]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name in ("processes", "restarts") or value is None or value is False:
            continue
        named = parameter.param_type_name == "option"
        arguments += [parameter.opts[0]] if named else []
        arguments += [] if value is True else [str(getattr(value, "value", value))]
    return arguments


def average(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="Two or more finished training runs that started from the same weights; before them also those "
            "weights, as --from takes them.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the new run.")],
    *,
    shares: Annotated[
        str | None, typer.Option(metavar="N,N", help="Weight of each run in the mean. \\[default: equal]")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Labelled images, each a set of its own: compare the means of two RUNs by share on them."),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Take the last of each N rows of --data only.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Draw at most this many images of each --data.")] = None,
    arch: _Arch = None,
    activation: _Activation = None,
    tokenizer: _Tokenizer = None,
) -> None:
    """Write a run whose weights are the mean of several runs' weights."""
    from model_export.training.averaging import average as write_mean
    from model_export.training.averaging import read_model

    try:
        numbers = [float(share) for share in shares.split(",")] if shares else []
    except ValueError:
        stop(f"--shares {shares}: is not a list of numbers such as 1,1,2")
    if data and len(runs) != 2:
        stop(f"--data compares a model before and after fine-tuning; name two RUNs, not {len(runs)}")
    if data:
        from model_export.evaluation.data.sources import open_data

        for path in data:
            open_data([path])  # refused before anything is written
    console, options = Console(), _options(arch, activation, tokenizer)
    write_mean(runs, out, shares=numbers, options=options, console=console)
    say(console, f"[green]wrote[/] {escape(str(out))}: the mean of {len(runs)} runs")
    if data:
        from model_export.training.forgetting import GRID, measure_shares, shares_table

        own = numbers[1] / sum(numbers) if numbers else 0.5
        grid = sorted({*GRID, own})
        models = [read_model(run, options) for run in runs]
        measured = measure_shares(models, data, shares=grid, every=every, limit=limit)
        console.print(shares_table(measured, data, (runs[0], runs[1])))


def _options(arch: str | None, activation: Activation | None, tokenizer: Path | None) -> "SourceOptions":
    from model_export.checkpoints.model_source import SourceOptions

    return SourceOptions(arch=arch, activation=activation, tokenizer=tokenizer)
