"""The commands ``embed`` and ``score``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer
from rich.console import Console
from rich.markup import escape

from model_export.cli.driving import DriverChoice, DriverName, RayAddress, Workers, driving, threads_of
from model_export.cli.output import say
from service.model.choices import Preprocessing, ScoringMethod
from service.model.engine.provider_table import ProviderName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from model_export.curation.run import Curation

_Data = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA...", help="Parquet files, WebDataset tars ({000..009}.tar), folders of them, or of pictures."
    ),
]
_Bundle = Annotated[Path, typer.Option(help="The folder of a bundle.")]
_Out = Annotated[Path, typer.Option(help="Folder for the shards and dataset.json. The same command continues there.")]
_Columns = Annotated[
    list[str] | None, typer.Option(metavar="NAME[,NAME]", help="Columns of the data that pass through.")
]
_DropBroken = Annotated[
    bool, typer.Option("--drop-broken", help="Drop rows without a vector. \\[default: null, with the reason]")
]
_ImageColumn = Annotated[str, typer.Option(help="Column of the encoded pictures.")]
_IdColumn = Annotated[str, typer.Option(help="Column of the ids; without one, ids follow from file and row.")]
_Provider = Annotated[ProviderName, typer.Option(help="Execution provider that runs the model.")]
_Preprocessing = Annotated[Preprocessing, typer.Option(help="exact: CLIP's own to the bit. fast: decodes less.")]
_BatchSize = Annotated[int, typer.Option(min=1, max=4096, help="Pictures or texts encoded at a time.")]
_Json = Annotated[Path | None, typer.Option("--json", help="Write the content of dataset.json to this file too.")]
_SHOWN_KINDS: Final = 5


def embed(
    data: _Data,
    bundle: _Bundle,
    out: _Out,
    *,
    images: Annotated[bool, typer.Option("--images/--no-images", help="Encode pictures.")] = True,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Encode captions.")] = False,
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="Type of a vector's numbers.")] = "float32",
    columns: _Columns = None,
    drop_broken: _DropBroken = False,
    image_column: _ImageColumn = "image",
    text_column: Annotated[str, typer.Option(help="Column of the captions.")] = "text",
    id_column: _IdColumn = "id",
    provider: _Provider = "auto",
    preprocessing: _Preprocessing = "exact",
    batch_size: _BatchSize = 32,
    workers: Workers = None,
    driver: DriverChoice = DriverName.LOCAL,
    ray_address: RayAddress = None,
    json_file: _Json = None,
) -> None:
    """Write the vectors of pictures, or captions, as Parquet shards."""
    from model_export.curation.embed import Embed
    from model_export.curation.encoding import BundleEncoder
    from model_export.curation.pieces import InputColumns
    from model_export.curation.run import Curation
    from model_export.errors import CurationError

    if not (images or text):
        raise CurationError("nothing to embed: leave --no-images out, or give --text")
    encoder = BundleEncoder(
        bundle,
        provider,
        threads=threads_of(driver, workers),
        batch_size=batch_size,
        preprocessing=preprocessing,
    )
    stage = Embed(encoder, images, text, _names(columns), dtype, drop_broken)
    given = InputColumns(id=id_column, text=text_column if text else "", image=image_column)
    notes = {"settings": {"embed": stage.settings}}
    with driving(driver, workers, ray_address) as chosen:
        curation = Curation(data, [stage], out, given, notes=notes, driver=chosen)
        _run(curation, json_file)


def score(
    data: _Data,
    bundle: _Bundle,
    out: _Out,
    *,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File with a label on each line, # begins a comment.")
    ] = None,
    label_set: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help='A label set in JSON: {"labels": ["cat", "dog"], "templates": "default"}.'),
    ] = None,
    templates: Annotated[
        str | None,
        typer.Option(
            metavar="SET",
            help="Set of the bundle, seven, openai-imagenet, or a JSON file. \\[default: the bundle's default]",
        ),
    ] = None,
    scoring: Annotated[ScoringMethod | None, typer.Option(help="Scoring method. \\[default: the model's own]")] = None,
    temperature: Annotated[float, typer.Option(help="Above 1 the scores are flatter, below 1 sharper.")] = 1.0,
    top: Annotated[int | None, typer.Option(metavar="K", help="Write the K best labels only. \\[default: all]")] = None,
    columns: _Columns = None,
    drop_broken: _DropBroken = False,
    image_column: _ImageColumn = "image",
    id_column: _IdColumn = "id",
    provider: _Provider = "auto",
    preprocessing: _Preprocessing = "exact",
    batch_size: _BatchSize = 32,
    workers: Workers = None,
    driver: DriverChoice = DriverName.LOCAL,
    ray_address: RayAddress = None,
    json_file: _Json = None,
) -> None:
    """Write the scores of labels for pictures as Parquet shards."""
    from dataclasses import replace

    from model_export.curation.encoding import BundleEncoder
    from model_export.curation.label_files import read_label_set, read_labels
    from model_export.curation.pieces import InputColumns
    from model_export.curation.run import Curation, begin
    from model_export.curation.score import Score, label_matrix
    from model_export.errors import CurationError
    from service.model.loading import load_bundle

    if (labels is None) == (label_set is None):
        raise CurationError("give either --labels or --label-set")
    if label_set and templates:
        raise CurationError("--label-set has its own templates; drop --templates")
    own = load_bundle(bundle, verify_digests=False).templates
    chosen = read_labels(labels, templates, own) if labels else read_label_set(label_set or Path(), own)
    encoder = BundleEncoder(
        bundle,
        provider,
        threads=threads_of(driver, workers),
        batch_size=batch_size,
        preprocessing=preprocessing,
    )
    stage = Score(encoder, chosen, scoring, temperature, top, _names(columns), drop_broken)
    given = InputColumns(id=id_column, text="", image=image_column)
    notes = {"settings": {"score": stage.settings}}
    with driving(driver, workers, ray_address) as tasks:
        curation = Curation(data, [stage], out, given, notes=notes, driver=tasks)
        begin(curation)
        curation = replace(curation, stages=[replace(stage, matrix=label_matrix(encoder, chosen))])
        _run(curation, json_file)


def _names(columns: list[str] | None) -> tuple[str, ...]:
    return tuple(name.strip() for part in columns or () for name in part.split(",") if name.strip())


def _run(curation: "Curation", json_file: Path | None) -> None:
    import time

    from model_export.curation.output import json_bytes, write_whole, writing
    from model_export.curation.progress import CurationProgress
    from model_export.curation.run import curate
    from model_export.curation.stage_report import show_stages

    for line in _passed_over(curation):
        say(Console(stderr=True), line)
    before = _rows_in(curation.out)
    started = time.monotonic()
    with CurationProgress(Console(stderr=True)) as progress:
        content = curate(curation, progress)
    seconds = time.monotonic() - started
    console, read = Console(), content["stages"][0]["in"]
    show_stages(console, content["stages"])
    done = max(0, read - before)
    say(
        console,
        f"[green]wrote[/] {escape(str(curation.out))}: {content['rows']:,} rows, {len(content['shards']):,} shards, "
        f"digest {content['digest'][:12]}; {done:,} rows in {seconds:.1f} s, {done / max(seconds, 1e-9):,.1f}/s",
    )
    if json_file:
        with writing(json_file):
            write_whole(json_file, json_bytes(content))


def _passed_over(curation: "Curation") -> "Iterator[str]":
    """Yield a line for each folder of pictures that has other files too."""
    from model_export.curation.inputs import input_names
    from model_export.curation.picture_folders import is_picture_folder, passed_over

    for name in filter(is_picture_folder, input_names(curation.data, texts=bool(curation.columns.text))):
        if found := passed_over(name):
            shown = sorted(found.items(), key=lambda each: (-each[1], each[0]))[:_SHOWN_KINDS]
            kinds = [f"{kind} {count:,}" for kind, count in shown] + ["…"] * (len(found) > _SHOWN_KINDS)
            yield f"{escape(name)}: passed over {found.total():,} that are no pictures: {escape(', '.join(kinds))}"


def _rows_in(out: Path) -> int:
    """Count the rows of the data that an earlier run has finished."""
    from model_export.curation.output import read_json

    found = [read_json(path) for path in out.glob("records/[0-9]*.json")]
    return sum(int(record["source"]["rows"]) for record in found if record)
