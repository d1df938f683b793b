"""The commands about bundles: ``export``, ``verify``, and ``list`` for the sizes that can be exported by name."""

import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from model_export.architectures.activations import Activation
from model_export.cli.output import FAILED, say, stop


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A hub id (OWNER/NAME\\[@REVISION]), the file or folder of a checkpoint, or a training run.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The bundle to write.")],
    *,
    precision: Annotated[
        Literal["fp32", "fp16-stored", "fp16", "int8"],
        typer.Option(
            help="fp16-stored: half the size, computed in fp32. fp16: for GPUs. int8: 8-bit MatMuls, for CPUs."
        ),
    ] = "fp32",
    arch: Annotated[str | None, typer.Option(help="A name from 'list', for weights without a configuration.")] = None,
    activation: Annotated[
        Activation | None, typer.Option(help="For weights whose configuration does not name it.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json or a BPE vocabulary, for weights without one.")
    ] = None,
    weights: Annotated[
        Literal["last", "ema"],
        typer.Option(help="Of a training run: the last weights, or their moving average (optim.ema)."),
    ] = "last",
    layout: Annotated[
        Literal["hugging_face", "open_clip"] | None,
        typer.Option(help="Which of two layouts in one folder to read. \\[default: what its configurations say]"),
    ] = None,
    as_published: Annotated[
        bool,
        typer.Option(
            "--as-published",
            help="Prepare pictures and texts as the source's files say, also where training is known to differ.",
        ),
    ] = False,
    keep_aspect: Annotated[
        bool,
        typer.Option(
            "--keep-aspect",
            help="For a SigLIP 2 NaFlex: keep the aspect of pictures, in as many patches as it was trained with.",
        ),
    ] = False,
    image_model: Annotated[
        str | None,
        typer.Option(
            metavar="SOURCE", help="For a text model alone: the model with the image tower it was trained for."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name. \\[default: follows from the source]")] = None,
    licence: Annotated[str | None, typer.Option(help="Licence of the weights, for the manifest.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Labelled images on which to compare fp16 or int8 with fp32.")
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="For int8: fix the ranges of activations from --data.")
    ] = False,
    onnx: Annotated[
        str | None,
        typer.Option(
            metavar="VARIANT", help="Take the source's ONNX encoders (fp32, fp16, quantized, …); needs no torch."
        ),
    ] = None,
    logit_scale: Annotated[
        float | None, typer.Option(help="For ONNX encoders whose source does not state it; 100 for OpenAI's models.")
    ] = None,
    logit_bias: Annotated[float | None, typer.Option(help="The same for a SigLIP.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle at OUT.")] = False,
) -> None:
    """Export a model to a bundle, and compare the bundle with the model before it is written to OUT."""
    from model_export.checkpoints.model_source import SourceOptions
    from model_export.export.console import Narrator, size
    from model_export.export.convert import Conversion, convert

    started = time.monotonic()
    narrator = Narrator(Console())
    options = SourceOptions(
        arch=arch,
        activation=activation,
        tokenizer=tokenizer,
        name=name,
        licence=licence,
        weights=weights,
        layout=layout,
        as_published=as_published,
        keep_aspect=keep_aspect,
        image_model=image_model,
    )
    manifest = convert(
        Conversion(
            source,
            options,
            precision,
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


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of a bundle.")],
    run: Annotated[
        Path | None, typer.Option(help="Compare with torch, from this source, instead of the bundle's probes.")
    ] = None,
    weights: Annotated[Literal["last", "ema"], typer.Option(help="Of --run, as for 'export'.")] = "last",
    layout: Annotated[
        Literal["hugging_face", "open_clip"] | None, typer.Option(help="Of --run, as for 'export'.")
    ] = None,
    provider: Annotated[str, typer.Option(help="The execution provider that runs the graphs.")] = "cpu",
) -> None:
    """Check a bundle: digests, batch sizes, text lengths, unit lengths, parity with torch."""
    from model_export.bundles.verification import verify_bundle
    from model_export.export.console import show

    if not bundle.is_dir():
        stop(f"{bundle}: is not a folder")
    console = Console()
    if run is None:
        report = verify_bundle(bundle, provider=provider)
    else:
        from model_export.checkpoints.load import load_model
        from model_export.checkpoints.model_source import SourceOptions
        from model_export.export.from_weights import reference_probes
        from service.model.loading import load_bundle

        aspect = load_bundle(bundle).manifest.image.resize == "aspect"
        source = load_model(run, SourceOptions(weights=weights, layout=layout, keep_aspect=aspect))
        report = verify_bundle(bundle, provider=provider, reference=lambda opened: reference_probes(source, opened))
    show(console, report)
    if report.passed:
        say(console, f"[green]{escape(str(bundle))}: every check passed[/]")
        return
    say(console, f"[red]{escape(str(bundle))}: failed: {escape(', '.join(report.failed))}[/]")
    raise typer.Exit(FAILED)


def list_sizes(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with aliases and configurations.")] = False,
    families: Annotated[
        bool, typer.Option("--families", help="Show the published families instead, read or not, with licences.")
    ] = False,
) -> None:
    """Show every known size: towers, parameters, joint space, input, published accuracy."""
    from model_export.families.listing import families_json, families_table, sizes_json, sizes_table

    if as_json:
        typer.echo(families_json() if families else sizes_json())
    else:
        Console().print(families_table() if families else sizes_table())
