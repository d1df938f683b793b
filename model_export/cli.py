"""``anyclass-export``: train, average, export, verify, evaluate.

Exit codes: 0 when all is well; 1 when a bundle fails a check, or images of an evaluation cannot be read; 2 when the
input or the usage is wrong. Everything heavy is imported inside the commands, so that ``--help`` is quick, and
``verify`` and ``evaluate`` need no torch.
"""

import os
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from model_export.errors import ModelExportError, ParityError
from service.errors import AnyclassError
from service.installation import how_to_add

FAILED = 1
WRONG_INPUT = 2
PACKAGE_MISSING = 3

INSTALLS = "ANYCLASS_EXPORT_INSTALLS"
"""A variable that `scripts/model.sh` sets, because it installs a package that is missing and tries again: nothing is
wrong then, and only the exit code tells it."""

_EXTRAS = {"verify": "convert", "evaluate": "evaluate"}
"""What brings the packages of a command; all others need ``train``."""

app = typer.Typer(
    name="anyclass-export",
    help="Train CLIP models, export them to bundles that anyclass serves, verify and evaluate bundles.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


class Numbers(StrEnum):
    """The precision of a bundle."""

    FP32 = "fp32"
    FP16_STORED = "fp16-stored"
    FP16 = "fp16"
    INT8 = "int8"


class Activation(StrEnum):
    """The activation of both towers' MLPs."""

    QUICK_GELU = "quick_gelu"
    GELU = "gelu"
    GELU_TANH = "gelu_tanh"


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.")],
    out: Annotated[Path | None, typer.Option(help="The run's folder. \\[default: runs/NAME]")] = None,
    *,
    data: Annotated[Path | None, typer.Option(help="The folder of the data files. \\[default: the recipe's]")] = None,
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
def average(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Two or more finished training runs that have a common beginning."),
    ],
    out: Annotated[Path, typer.Option(help="The run's folder.")],
    *,
    shares: Annotated[
        str | None, typer.Option(metavar="N,N", help="Of each run in the mean. \\[default: all alike]")
    ] = None,
) -> None:
    """Write a run whose weights are the mean of several runs' weights."""
    from model_export.training.averaging import average as write_mean

    try:
        numbers = [float(share) for share in shares.split(",")] if shares else []
    except ValueError:
        _stop(f"--shares {shares}: is not a list of numbers, as 1,1,2")
    write_mean(runs, out, shares=numbers)
    Console().print(
        f"[green]wrote[/] {escape(str(out))}: the mean of {len(runs)} runs", highlight=False, soft_wrap=True
    )


@app.command()
def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A hub id (OWNER/NAME\\[@REVISION]), a checkpoint's file or folder, or a training run.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The bundle to write.")],
    *,
    precision: Annotated[
        Numbers,
        typer.Option(
            help="fp16-stored: half the size, computed in fp32; fp16: for GPUs; int8: 8-bit MatMuls, for CPUs."
        ),
    ] = Numbers.FP32,
    arch: Annotated[str | None, typer.Option(help="A name of 'list', for weights without a configuration.")] = None,
    activation: Annotated[
        Activation | None, typer.Option(help="For weights whose configuration does not tell it.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json, or a BPE vocabulary, for weights that carry none.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name. \\[default: follows from the source]")] = None,
    licence: Annotated[str | None, typer.Option(help="Of the weights, for the manifest.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Labelled pictures on which fp16 or int8 is compared with fp32.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="int8: fix the ranges of activations from --data.")
    ] = False,
    onnx: Annotated[
        str | None,
        typer.Option(
            metavar="VARIANT", help="Take the source's ONNX encoders (fp32, fp16, quantized, …), without torch."
        ),
    ] = None,
    logit_scale: Annotated[
        float | None, typer.Option(help="For ONNX encoders whose source does not tell it: 100 for OpenAI's models.")
    ] = None,
    logit_bias: Annotated[float | None, typer.Option(help="The same, of a SigLIP.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is at OUT.")] = False,
) -> None:
    """Export a model to a bundle, and measure it against the model before it gets its name."""
    from model_export.checkpoints.model_source import SourceOptions
    from model_export.export.console import Narrator, size
    from model_export.export.convert import Conversion, convert

    started = time.monotonic()
    narrator = Narrator(Console())
    options = SourceOptions(
        arch=arch,
        activation=activation.value if activation else None,
        tokenizer=tokenizer,
        name=name,
        licence=licence,
    )
    manifest = convert(
        Conversion(
            source,
            options,
            precision.value,
            data=tuple(data or ()),
            calibrate=calibrate,
            onnx=onnx,
            logit_scale=logit_scale,
            logit_bias=logit_bias,
        ),
        out,
        narrator=narrator,
        force=force,
    )
    total = sum(entry.bytes for entry in manifest.files.values())
    narrator.say(
        f"[green]wrote[/] {escape(str(out))}: {size(total)}, revision {manifest.revision[:12]}, "
        f"{time.monotonic() - started:.1f} s"
    )


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle.")],
    run: Annotated[
        Path | None,
        typer.Option(help="Compare with torch again, from this source, not with the bundle's probes."),
    ] = None,
    provider: Annotated[str, typer.Option(help="The execution provider to run the graphs on.")] = "cpu",
) -> None:
    """Check a bundle: digests, batch sizes, text lengths, unit lengths, parity with torch."""
    from model_export.bundles.verification import verify_bundle
    from model_export.export.console import show

    if not bundle.is_dir():
        _stop(f"{bundle}: is not a folder")
    console = Console()
    if run is None:
        report = verify_bundle(bundle, provider=provider)
    else:
        from model_export.checkpoints.load import load_model
        from model_export.checkpoints.model_source import SourceOptions
        from model_export.export.from_weights import reference_probes

        source = load_model(run, SourceOptions())
        report = verify_bundle(bundle, provider=provider, reference=lambda opened: reference_probes(source, opened))
    show(console, report)
    if report.passed:
        console.print(f"[green]{escape(str(bundle))}: every check passed[/]", highlight=False, soft_wrap=True)
        return
    console.print(
        f"[red]{escape(str(bundle))}: failed: {escape(', '.join(report.failed))}[/]",
        highlight=False,
        soft_wrap=True,
    )
    raise typer.Exit(FAILED)


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle.")],
    data: Annotated[
        list[str],
        typer.Option(
            help="Labelled images: a Parquet file, a folder with a sub-folder for each class, a WebDataset "
            "({000..009}.tar); several are one set."
        ),
    ],
    *,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SET[,SET]",
            help="Sets of the bundle, seven, openai-imagenet, JSON files; by default all of the bundle's.",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="One class a line, or openai-imagenet; by default the data's labels."),
    ] = None,
    provider: Annotated[str, typer.Option(help="The execution provider.")] = "cpu",
    every: Annotated[int, typer.Option(min=1, help="Only the last of each N rows: those that a run held out.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images, drawn at random.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=4096, help="Images, or prompts, at a time.")] = 64,
    max_broken: Annotated[int, typer.Option(min=0, help="Unreadable images that are put up with.")] = 0,
    rows: Annotated[int, typer.Option(min=1, help="Classes and confusions to show.")] = 20,
    plot: Annotated[Path | None, typer.Option(help="Draw template sets and confusions to this PNG.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
    image_column: Annotated[str, typer.Option(help="Of Parquet files: the encoded pictures.")] = "image",
    label_column: Annotated[str, typer.Option(help="Of Parquet files: the classes.")] = "label",
) -> None:
    """Measure a bundle's zero-shot accuracy on labelled images, and compare template sets."""
    from model_export.evaluation.data.sources import Columns
    from model_export.evaluation.plot import check_plot, write_plot
    from model_export.evaluation.report import Bars, check_output, show, write_json
    from model_export.evaluation.run import Request
    from model_export.evaluation.run import evaluate as measure

    if plot:
        check_plot(plot)
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
        columns=Columns(image_column, label_column),
    )
    with Bars(Console(stderr=True)) as bars:
        found = measure(request, bars)
    console = Console()
    show(console, found, rows=rows)
    for path, write in ((plot, write_plot), (json_file, write_json)):
        if path:
            write(path, found)
            console.print(f"[green]wrote[/] {escape(str(path))}", highlight=False, soft_wrap=True)
    if found.broken_count > max_broken:
        raise typer.Exit(FAILED)


@app.command("list")
def list_sizes(
    *, as_json: Annotated[bool, typer.Option("--json", help="For programs: with aliases and configurations.")] = False
) -> None:
    """Show every known size: towers, parameters, joint space, input, published accuracy."""
    from model_export.architectures.listing import sizes_json, sizes_table

    if as_json:
        typer.echo(sizes_json())
    else:
        Console().print(sizes_table())


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
        if os.environ.get(INSTALLS):
            raise SystemExit(PACKAGE_MISSING) from None
        command = sys.argv[1] if len(sys.argv) > 1 else ""
        extra = "train" if exc.name == "torch" else _EXTRAS.get(command, "train")
        _stop(f"{exc.name} is not installed; this needs the extra {extra}: {how_to_add(extra)}", PACKAGE_MISSING)
    except KeyboardInterrupt:
        _stop("stopped", 130)


if __name__ == "__main__":
    main()
