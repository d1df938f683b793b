"""The command ``curate dedup``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from model_export.cli.output import say

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
            "Several are joined with commas."
        ),
    ] = "exact,near",
    similarity: Annotated[
        float, typer.Option(help="Least correlation of near copies; higher drops fewer pictures.")
    ] = 0.92,
    seed: Annotated[int, typer.Option(help="Decides which of several pictures of one size stays.")] = 0,
    signatures: Annotated[
        Path | None,
        typer.Option(help="Folder of the pictures' signatures; later runs use it. \\[default: within OUT]"),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the captions.")] = "text",
    image_column: Annotated[str, typer.Option(help="Column of the encoded pictures.")] = "image",
    id_column: Annotated[str, typer.Option(help="Column of the ids, if the data have one.")] = "id",
    plot: Annotated[Path | None, typer.Option(help="Draw the groups by size into this PNG file.")] = None,
    workers: _Workers = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report to this file too.")] = None,
) -> None:
    """Keep one of several copies of a picture, the largest."""
    from model_export.curation.balance_report import check_balance_plot
    from model_export.curation.dedup import DedupSettings, methods_named
    from model_export.curation.dedup_report import dedup_json, show_groups, write_groups_plot
    from model_export.curation.deduplicating import SIGNATURES, Pictures, plan_dedup, share_digests
    from model_export.curation.output import json_bytes, write_whole, writing
    from model_export.curation.pieces import InputColumns
    from model_export.curation.progress import CurationProgress
    from model_export.curation.run import Curation
    from model_export.curation.run import curate as run
    from model_export.curation.stage_report import show_stages
    from model_export.drivers.local import LocalDriver

    if plot:
        check_balance_plot(plot)
    settings = DedupSettings(methods_named(method), similarity, seed=seed)
    columns = InputColumns(id=id_column, text=text_column, image=image_column)
    driver = LocalDriver(workers)
    pictures = Pictures(data, columns, signatures or out / SIGNATURES, driver)
    with CurationProgress(Console(stderr=True)) as progress:
        plan = plan_dedup(pictures, settings, progress)
        share_digests(pictures, out)
        notes = {"dedup": settings.as_json()}
        content = run(Curation(data, [plan.stage], out, columns, notes=notes, driver=driver), progress)
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
