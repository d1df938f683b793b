"""The commands ``curate filter`` and ``curate balance``."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from model_export.cli.driving import DriverChoice, DriverName, RayAddress, Workers, driving
from model_export.cli.output import say

_Data = Annotated[
    list[str],
    typer.Argument(metavar="DATA", help="Parquet files, folders of them, or WebDataset tars ({000..009}.tar)."),
]
_Out = Annotated[Path, typer.Option(help="Folder for the shards and dataset.json. The same command continues there.")]


def filter_pairs(
    data: _Data,
    out: _Out,
    *,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Drop captions that are not natural language.")] = True,
    language: Annotated[
        list[str] | None,
        typer.Option(help="Keep captions in this language (ISO 639-1); several add up. \\[default: en]"),
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="Least probability of the language; higher keeps fewer captions.")
    ] = 0.25,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Drop pictures that are broken, small, flat or animated.")
    ] = False,
    shorter_side: Annotated[int, typer.Option(help="Fewest pixels of a picture's shorter side.")] = 200,
    aspect: Annotated[float, typer.Option(help="Most times that the longer side is the shorter one.")] = 3.0,
    text_column: Annotated[str, typer.Option(help="Column of the captions.")] = "text",
    image_column: Annotated[str, typer.Option(help="Column of the encoded pictures.")] = "image",
    workers: Workers = None,
    driver: DriverChoice = DriverName.LOCAL,
    ray_address: RayAddress = None,
) -> None:
    """Keep pairs with a caption in natural language, and with pictures that show something."""
    from model_export.curation.image_filter import ImageFilter
    from model_export.curation.pieces import InputColumns
    from model_export.curation.progress import CurationProgress
    from model_export.curation.run import Curation
    from model_export.curation.run import curate as run
    from model_export.curation.stage import Stage
    from model_export.curation.stage_report import show_stages
    from model_export.curation.text_filter import TextFilter
    from model_export.errors import CurationError

    stages: list[Stage] = []
    if text:
        stages.append(TextFilter(tuple(language or ("en",)), confidence))
    if images:
        stages.append(ImageFilter(shorter_side, aspect))
    if not stages:
        raise CurationError("nothing to filter: give --text or --images")
    columns = InputColumns(text=text_column, image=image_column)
    with driving(driver, workers, ray_address) as chosen, CurationProgress(Console(stderr=True)) as progress:
        content = run(Curation(data, stages, out, columns, driver=chosen), progress)
    show_stages(Console(), content["stages"])
    say(Console(), f"[green]wrote[/] {escape(str(out))}")


def balance(
    data: _Data,
    queries: Annotated[Path, typer.Option(help="The query list that the pairs were matched with.")],
    out: _Out,
    *,
    method: Annotated[
        str,
        typer.Option(
            help="cap: charge each pair to its rarest query, at most T a query. independent: each query keeps a pair "
            "with probability T/count."
        ),
    ] = "cap",
    most: Annotated[int, typer.Option(metavar="T", help="Pairs a query.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Decides which pairs stay.")] = 0,
    counts: Annotated[
        Path | None, typer.Option(help="Parquet file of the queries' counts: read if it exists, else written.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw matched and kept pairs into this PNG file.")] = None,
    workers: Workers = None,
    driver: DriverChoice = DriverName.LOCAL,
    ray_address: RayAddress = None,
) -> None:
    """Keep at most T pairs a query, so that frequent things do not crowd out rare ones."""
    from model_export.curation.balance import BalanceSettings, method_named
    from model_export.curation.balance_report import check_balance_plot, show_balance, write_balance_plot
    from model_export.curation.balancing import Passes, count_matches, counted, plan_balance
    from model_export.curation.progress import CurationProgress
    from model_export.curation.query_list import read_queries
    from model_export.curation.run import Curation
    from model_export.curation.run import curate as run
    from model_export.curation.stage_report import show_stages
    from model_export.data.patterns import file_names

    if plot:
        check_balance_plot(plot)
    settings = BalanceSettings(method_named(method), most, seed)
    wanted = read_queries(queries)
    names = file_names(data)
    with driving(driver, workers, ray_address) as chosen, CurationProgress(Console(stderr=True)) as progress:
        over = partial(Passes, run_tasks=chosen.run)
        passes = over(names, begin=progress.begin, advance=progress.advance)
        matched = counted(counts, passes, len(wanted.queries), wanted.digest).matched
        plan = plan_balance(passes, settings, matched)
        notes = {"queries": wanted.digest}
        content = run(Curation(data, [plan], out, notes=notes, driver=chosen), progress)
        made = over(file_names([str(out)]), begin=progress.begin, advance=progress.advance)
        kept = count_matches(made, len(wanted.queries))
    console = Console()
    show_stages(console, content["stages"])
    show_balance(console, matched, kept, [query.text for query in wanted.queries], most)
    if plot:
        write_balance_plot(plot, matched, kept, most)
        say(console, f"[green]wrote[/] {escape(str(plot))}")
    say(console, f"[green]wrote[/] {escape(str(out))}")
