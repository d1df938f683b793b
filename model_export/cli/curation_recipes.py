"""The commands ``curate run``, ``curate match`` and ``curate verify``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from model_export.cli.curation_running import ShardKind, Shards, run_recipe
from model_export.cli.driving import DriverChoice, DriverName, RayAddress, Workers, driving, threads_of
from model_export.cli.output import FAILED, say

_Out = Annotated[Path, typer.Option(help="Folder of the data set. A run that was stopped goes on in it.")]
_Json = Annotated[Path | None, typer.Option("--json", help="Write the content of dataset.json to this file too.")]


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file.")],
    out: _Out,
    *,
    workers: Workers = None,
    driver: DriverChoice = DriverName.LOCAL,
    ray_address: RayAddress = None,
    json_file: _Json = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw matched and kept pairs of the balance into this PNG file.")
    ] = None,
) -> None:
    """Run every stage that a recipe names, in order."""
    from model_export.curation.recipe import read_recipe

    with driving(driver, workers, ray_address) as chosen:
        threads = threads_of(driver, workers)
        run_recipe(read_recipe(recipe), out, chosen, json_file=json_file, plot=plot, threads=threads)


def match(
    data: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="Parquet or tar files, ranges of them, folders.")
    ],
    queries: Annotated[Path, typer.Option(help="The list, one query a line.")],
    out: _Out,
    *,
    keep_unmatched: Annotated[
        bool, typer.Option("--keep-unmatched", help="Keep pairs whose text contains no query.")
    ] = False,
    text_column: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    image_column: Annotated[str, typer.Option(help="Column of the images, if the data have one.")] = "image",
    shards: Shards = ShardKind.PARQUET,
    workers: Workers = None,
    driver: DriverChoice = DriverName.LOCAL,
    ray_address: RayAddress = None,
    json_file: _Json = None,
) -> None:
    """Find the queries that each text contains as whole words, and keep the pairs with one."""
    from model_export.curation.pieces import InputColumns
    from model_export.curation.recipe import DataSection, MatchSection, OutputSection, Recipe

    columns = InputColumns(text=text_column, image=image_column)
    recipe = Recipe(
        data=DataSection(files=tuple(data), columns=columns),
        match=MatchSection(queries=str(queries), keep_unmatched=keep_unmatched),
        output=OutputSection.model_validate({"format": shards.value}),
    )
    with driving(driver, workers, ray_address) as chosen:
        run_recipe(recipe, out, chosen, json_file=json_file)


def verify(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="The folder of a data set.")],
    *,
    shard: Annotated[list[str] | None, typer.Option(help="Make this shard again only. \\[default: every one]")] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="The bundle of a CLIP score, of embed or of score. \\[default: compare digests only]"),
    ] = None,
    workers: Workers = None,
    driver: DriverChoice = DriverName.LOCAL,
    ray_address: RayAddress = None,
) -> None:
    """Make shards again from their inputs, and name every input and shard that differs."""
    from model_export.curation.progress import CurationProgress
    from model_export.curation.verification import verify_dataset

    with driving(driver, workers, ray_address) as chosen, CurationProgress(Console(stderr=True)) as progress:
        threads = threads_of(driver, workers)
        found = verify_dataset(dataset, progress, only=shard or (), driver=chosen, bundle=bundle, threads=threads)
    console = Console()
    for note in found.notes:
        say(console, f"[yellow]note:[/] {escape(note)}")
    for problem in found.problems:
        say(console, f"[red]differs:[/] {escape(problem)}")
    if found.problems:
        raise typer.Exit(FAILED)
    verdict = "follow from their inputs" if found.remade else "and the inputs have their recorded bytes"
    say(console, f"[green]{escape(str(dataset))}: {found.shards:,} shards {verdict}[/]")


def queries(
    out: Annotated[Path, typer.Option(help="The list to write.")],
    *,
    text: Annotated[list[str] | None, typer.Option(help="Text or Parquet files whose words are counted.")] = None,
    titles: Annotated[list[Path] | None, typer.Option(help="Titles with their views behind a tab.")] = None,
    wordnet: Annotated[Path | None, typer.Option(help="Folder of WordNet's files data.noun, ….")] = None,
    least: Annotated[int, typer.Option(min=1, help="Occurrences of a word, and of a pair of words.")] = 100,
    least_pmi: Annotated[float, typer.Option(help="Pointwise mutual information of a pair of words, in bits.")] = 3.0,
    least_views: Annotated[int, typer.Option(min=0, help="Views of a title.")] = 1_000,
    text_column: Annotated[str, typer.Option(help="Column of the texts in Parquet files.")] = "text",
    workers: Workers = None,
    driver: DriverChoice = DriverName.LOCAL,
    ray_address: RayAddress = None,
) -> None:
    """Make a query list of words, pairs of words, titles and synsets, each with its source and count."""
    from collections import Counter

    from model_export.curation.progress import CurationProgress
    from model_export.curation.query_list import write_queries
    from model_export.curation.query_sources import QuerySources, make_queries
    from model_export.data.patterns import expand_ranges
    from model_export.errors import DataError

    if not (text or titles or wordnet):
        raise DataError("no source: give --text, --titles or --wordnet")
    names = [each for name in text or () for each in expand_ranges(name)]
    sources = QuerySources(names, text_column, titles or (), wordnet, least, least_pmi, least_views)
    beside = out.parent if driver is DriverName.RAY else None  # where every node sees it
    with driving(driver, workers, ray_address) as chosen, CurationProgress(Console(stderr=True)) as progress:
        found = make_queries(sources, progress, driver=chosen, work=beside)
    write_queries(out, found)
    counts = ", ".join(f"{count:,} {source}" for source, count in Counter(query.source for query in found).items())
    say(Console(), f"[green]wrote[/] {escape(str(out))}: {len(found):,} queries ({counts})")
