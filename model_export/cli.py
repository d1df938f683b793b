"""``anyclass-export``: train, export, verify.

Exit codes: 0 when all is well; 1 when a bundle fails a check; 2 when the input or the usage is wrong. Everything heavy
is imported inside the commands, so that ``--help`` is quick and ``verify`` needs no torch.
"""

import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model_export.errors import ModelExportError, ParityError
from service.errors import AnyclassError

if TYPE_CHECKING:
    from model_export.export import Graph
    from model_export.verify import Report

FAILED = 1
WRONG_INPUT = 2

app = typer.Typer(
    name="anyclass-export",
    help="Train CLIP models, export them to bundles that anyclass serves, and verify bundles.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


class Storage(StrEnum):
    """How weights are stored; they are computed with in fp32 either way."""

    FP32 = "fp32"
    FP16_STORED = "fp16-stored"


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a TOML file.")],
    out: Annotated[Path | None, typer.Option(help="The run's folder. [default: runs/NAME]")] = None,
    *,
    data: Annotated[Path | None, typer.Option(help="The folder of the data files. [default: the recipe's]")] = None,
    start_from: Annotated[
        Path | None, typer.Option("--from", help="Begin with the weights and the tokenizer of this finished run.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
) -> None:
    """Train a CLIP from image–text pairs, as a recipe says."""
    from model_export.training.run import train as run_training

    run_training(recipe, out=out, data=data, start_from=start_from, resume=resume, device=device, console=Console())


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished training run.")],
    out: Annotated[Path, typer.Argument(help="The bundle to write.")],
    *,
    precision: Annotated[
        Storage, typer.Option(help="How weights are stored; computation is fp32 either way.")
    ] = Storage.FP32,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is at OUT.")] = False,
) -> None:
    """Export a training run to a bundle, and measure it against torch before it gets its name."""
    from model_export.bundle import check_destination
    from model_export.export import export_run
    from model_export.sources import load_training_run

    started = time.monotonic()
    console = Console()
    check_destination(out, force=force)
    run = load_training_run(source)
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    console.print(
        f"[bold]{run.config.name}[/]: {run.config.model.image.kind}, {parameters / 1e6:.2f}M parameters, "
        f"{run.config.image.height}×{run.config.image.width} pixels, weights stored as {precision.value}",
        highlight=False,
        soft_wrap=True,
    )
    manifest = export_run(run, out, precision=precision.value, force=force, listener=_Narrator(console))
    size = sum(entry.bytes for entry in manifest.files.values())
    console.print(
        f"[green]wrote[/] {escape(str(out))}: {_size(size)}, revision {manifest.revision[:12]}, "
        f"{time.monotonic() - started:.1f} s",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="The bundle.")],
    run: Annotated[
        Path | None,
        typer.Option(help="Compare with torch again, from this training run, not with the bundle's probes."),
    ] = None,
    provider: Annotated[str, typer.Option(help="The execution provider to run the graphs on.")] = "cpu",
) -> None:
    """Check a bundle: digests, batch sizes, text lengths, unit lengths, parity with torch."""
    from model_export.verify import verify_bundle

    if not bundle.is_dir():
        _stop(f"{bundle}: is not a folder")
    console = Console()
    if run is None:
        report = verify_bundle(bundle, provider=provider)
    else:
        from model_export.export import reference_probes
        from model_export.sources import load_training_run

        source = load_training_run(run)
        report = verify_bundle(bundle, provider=provider, reference=lambda opened: reference_probes(source, opened))
    _show(console, report)
    if report.passed:
        console.print(f"[green]{escape(str(bundle))}: every check passed[/]", highlight=False, soft_wrap=True)
        return
    console.print(
        f"[red]{escape(str(bundle))}: failed: {escape(', '.join(report.failed))}[/]",
        highlight=False,
        soft_wrap=True,
    )
    raise typer.Exit(FAILED)


class _Narrator:
    """Prints an export as it goes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def wrote(self, graph: "Graph") -> None:
        self._console.print(
            f"{graph.file:20} {graph.nodes:5,} nodes  {graph.weights / 1e6:8.2f}M weights  "
            f"{_size(graph.bytes):>9}  {graph.seconds:6.1f} s",
            highlight=False,
            soft_wrap=True,
        )

    def measured(self, report: "Report") -> None:
        _show(self._console, report)


def _show(console: Console, report: "Report") -> None:
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


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _stop(message: str, code: int = WRONG_INPUT) -> NoReturn:
    message = " ".join(message.split())  # what a library says may have several lines
    Console(stderr=True).print(f"[red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise SystemExit(code)


def main() -> None:
    """Run the command line; expected errors are one line on stderr, never a traceback."""
    try:
        app()
    except ParityError as exc:
        _stop(str(exc), FAILED)
    except ModelExportError as exc:
        _stop(str(exc))
    except AnyclassError as exc:
        _stop(exc.detail)
    except ModuleNotFoundError as exc:
        if exc.name and exc.name.partition(".")[0] in {"model_export", "service"}:
            raise
        extra = "convert" if "verify" in sys.argv[1:2] else "train"
        _stop(f"{exc.name} is not installed; this command needs the extra: pip install 'anyclass[{extra},cpu]'")
    except KeyboardInterrupt:
        _stop("stopped", 130)


if __name__ == "__main__":
    main()
