"""The commands ``curate dedup`` and ``curate overlap``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from model_export.cli.curation_running import ShardKind, Shards
from model_export.cli.driving import DriverChoice, DriverName, RayAddress, Workers, driving
from model_export.cli.output import say

if TYPE_CHECKING:
    from model_export.curation.overlap import Overlap
    from model_export.curation.overlap_accuracy import AccuracyChange

_Data = Annotated[
    list[str],
    typer.Argument(metavar="DATA", help="Parquet files, folders of them, or WebDataset tars ({000..009}.tar)."),
]
_Workers = Annotated[int, typer.Option(min=1, help="Processes. Their number does not change a byte.")]


def dedup(
    data: _Data,
    out: Annotated[
        Path, typer.Option(help="Folder for the shards and dataset.json. The same command continues there.")
    ],
    *,
    method: Annotated[
        str,
        typer.Option(
            help="exact: the same pixels. near: the same picture, scaled, compressed, mirrored or cropped a little. "
            "semantic: pictures that show the same, by --vectors. Several are joined with commas."
        ),
    ] = "exact,near",
    similarity: Annotated[
        float, typer.Option(help="Least correlation of near copies; higher drops fewer pictures.")
    ] = 0.92,
    vectors: Annotated[
        list[str] | None,
        typer.Option(help="Parquet files with the columns id and vector, for --method semantic."),
    ] = None,
    vector_column: Annotated[str, typer.Option(help="Column of the vectors: lists of floats.")] = "vector",
    cosine: Annotated[float, typer.Option(help="Least cosine of semantic copies; higher drops fewer pictures.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Decides which of several pictures of one size stays.")] = 0,
    signatures: Annotated[
        Path | None,
        typer.Option(help="Folder of the pictures' signatures; later runs use it. \\[default: within OUT]"),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the captions.")] = "text",
    image_column: Annotated[str, typer.Option(help="Column of the encoded pictures.")] = "image",
    id_column: Annotated[str, typer.Option(help="Column of the ids, if the data have one.")] = "id",
    plot: Annotated[Path | None, typer.Option(help="Draw the groups by size into this PNG file.")] = None,
    shards: Shards = ShardKind.PARQUET,
    workers: Workers = None,
    driver: DriverChoice = DriverName.LOCAL,
    ray_address: RayAddress = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report to this file too.")] = None,
) -> None:
    """Keep one of several copies of a picture, the largest."""
    from model_export.curation.dedup import DedupSettings, methods_named
    from model_export.curation.dedup_report import dedup_json, show_groups, write_groups_plot
    from model_export.curation.deduplicating import SIGNATURES, Pictures, check_folder, plan_dedup, share_digests
    from model_export.curation.output import json_bytes, write_whole, writing
    from model_export.curation.pieces import InputColumns
    from model_export.curation.progress import CurationProgress
    from model_export.curation.run import Curation
    from model_export.curation.run import curate as run
    from model_export.curation.semantic import VectorFiles
    from model_export.curation.stage_report import show_stages
    from model_export.evaluation.report import check_output
    from model_export.plots import check_plot

    if plot:
        check_plot(plot, "curate")
    if json_file:
        check_output(json_file)
    settings = DedupSettings(methods_named(method), similarity, cosine, seed)
    check_folder(out, settings)
    columns = InputColumns(id=id_column, text=text_column, image=image_column)
    with driving(driver, workers, ray_address) as chosen, CurationProgress(Console(stderr=True)) as progress:
        pictures = Pictures(data, columns, signatures or out / SIGNATURES, chosen)
        files = VectorFiles(vectors, vector_column) if vectors else None
        plan = plan_dedup(pictures, settings, progress, files)
        share_digests(pictures, out)
        recorded = {"method": method, "similarity": similarity, "seed": seed}
        notes = {"dedup": settings.as_json(), "settings": {"dedup": recorded}}
        curation = Curation(data, [plan.stage], out, columns, notes=notes, driver=chosen, kind=shards.value)
        content = run(curation, progress)
    console = Console()
    show_stages(console, content["stages"])
    show_groups(console, plan)
    for path in filter(None, (plot, json_file)):
        with writing(path):
            if path is plot:
                write_groups_plot(path, plan)
            else:
                write_whole(path, json_bytes(dedup_json(content, plan)))
        say(console, f"[green]wrote[/] {escape(str(path))}")
    say(console, f"[green]wrote[/] {escape(str(out))}")


def overlap(
    train: Annotated[
        list[str], typer.Argument(metavar="TRAIN...", help="Training set: Parquet files, folders of them, or tars.")
    ],
    evaluation: Annotated[
        list[str], typer.Option("--with", metavar="EVAL", help="Evaluation set, likewise; several make one set.")
    ],
    *,
    method: Annotated[str, typer.Option(help="exact, near, or both with a comma; see curate dedup.")] = "exact,near",
    similarity: Annotated[float, typer.Option(help="Least correlation of near copies.")] = 0.92,
    pairs: Annotated[
        Path | None, typer.Option(help="Write the ids of the pairs that were found into this Parquet file.")
    ] = None,
    clean: Annotated[
        Path | None, typer.Option(help="Write the evaluation set without these pictures into this folder.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Measure this bundle on the evaluation set with and without these pictures.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(metavar="FILE", help="Classes for --bundle, one a line. \\[default: the labels]")
    ] = None,
    label_column: Annotated[str, typer.Option(help="Column of the classes, for --bundle.")] = "label",
    signatures: Annotated[
        Path | None,
        typer.Option(help="Folder of the training set's signatures, kept for other runs. \\[default: a temporary one]"),
    ] = None,
    image_column: Annotated[str, typer.Option(help="Column of the encoded pictures.")] = "image",
    id_column: Annotated[str, typer.Option(help="Column of the ids, if the data have one.")] = "id",
    workers: _Workers = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")] = None,
) -> None:
    """Measure the share of an evaluation set whose pictures are in a training set."""
    import tempfile

    from model_export.curation.dedup import DedupSettings, Method, methods_named
    from model_export.curation.deduplicating import Pictures, check_ids
    from model_export.curation.output import json_bytes, write_whole, writing
    from model_export.curation.overlap import find_overlap, without_overlap, write_pairs
    from model_export.curation.overlap_accuracy import accuracy_change
    from model_export.curation.pieces import InputColumns
    from model_export.curation.progress import CurationProgress
    from model_export.curation.run import Curation
    from model_export.curation.run import curate as run
    from model_export.drivers.local import LocalDriver
    from model_export.errors import CurationError
    from model_export.evaluation.data.sources import SampleColumns
    from model_export.evaluation.report import Bars, check_output
    from service.model.loading import load_bundle

    settings = DedupSettings(methods_named(method), similarity)
    if Method.SEMANTIC in settings.methods:
        raise CurationError("the method 'semantic' is for curate dedup; choose exact, near or both")
    for path in filter(None, (pairs, json_file)):
        check_output(path)
    columns = InputColumns(id=id_column, text="", image=image_column)
    driver = LocalDriver(workers)
    change = None
    if bundle:
        load_bundle(bundle)  # a wrong one is refused before the long work
    with CurationProgress(Console(stderr=True)) as progress, tempfile.TemporaryDirectory(prefix="overlap-") as folder:
        mine = Pictures(train, columns, signatures or Path(folder) / "training", driver)
        theirs = Pictures(evaluation, columns, Path(folder) / "evaluation", driver)
        if clean or bundle:
            check_ids(theirs, progress)
        found = find_overlap(mine, theirs, settings, progress)
        rest = clean or Path(folder) / "clean"
        if clean or bundle:
            run(Curation(evaluation, [without_overlap(found)], rest, columns, driver=driver), progress)
        if bundle:
            names, samples = ([*evaluation], [str(rest)]), SampleColumns(image_column, label_column)
            with Bars(Console(stderr=True)) as bars:
                change = accuracy_change(bundle, names, samples, classes, bars)
    _show_overlap(found, change)
    for path in filter(None, (pairs, json_file)):
        with writing(path):
            if path is pairs:
                write_pairs(path, found)
            else:
                accuracy = {"accuracy": change.as_json()} if change else {}
                write_whole(path, json_bytes(found.as_json() | accuracy))
    for path in filter(None, (pairs, json_file, clean)):
        say(Console(), f"[green]wrote[/] {escape(str(path))}")


def _show_overlap(found: "Overlap", change: "AccuracyChange | None") -> None:
    console = Console()
    say(
        console,
        f"{found.copies:,} of {found.pictures:,} pictures of the evaluation set are among {found.training:,} of the "
        f"training set: {100 * found.share:.2f}% ± {100 * found.error:.2f}% ({found.exact:,} exact copies)",
    )
    if change:
        say(
            console,
            f"accuracy {100 * change.accuracy:.2f}% with them, {100 * change.clean_accuracy:.2f}% without, difference "
            f"{100 * change.difference:+.2f}% ± {100 * change.standard_error:.2f}% (templates {change.templates})",
        )
