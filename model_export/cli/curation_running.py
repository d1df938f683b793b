"""Run a recipe for the commands of ``curate``, and report on it."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from model_export.cli.output import say

if TYPE_CHECKING:
    from model_export.curation.recipe import Recipe
    from model_export.drivers.driver import Driver


class ShardKind(StrEnum):
    """Kinds of shards by their names on the command line."""

    PARQUET = "parquet"
    TAR = "tar"


Shards = Annotated[ShardKind, typer.Option("--format", help="Kind of the shards.")]


def run_recipe(
    recipe: "Recipe",
    out: Path,
    driver: "Driver",
    *,
    json_file: Path | None = None,
    plot: Path | None = None,
    counts: Path | None = None,
    threads: int | None = None,
) -> None:
    """Make a data set, and print its stages.

    Args:
        recipe: with paths as they are seen from the working folder.
        out: folder of the data set.
        driver: runs the tasks.
        json_file: for the content of `dataset.json`.
        plot: PNG file for matched and kept pairs of a balance.
        counts: file for the queries' counts before a balance.
        threads: of a bundle's engine in each task.
    """
    from model_export.curation.output import json_bytes, write_whole, writing
    from model_export.curation.progress import CurationProgress
    from model_export.curation.recipe_stages import curation_of
    from model_export.curation.run import curate
    from model_export.curation.stage_report import show_stages
    from model_export.data.patterns import file_names
    from model_export.errors import CurationError
    from model_export.plots import check_plot

    if plot:
        if not recipe.balance:
            raise CurationError("--plot draws matched and kept pairs of a balance; add [balance] to the recipe")
        check_plot(plot, "curate")
    with CurationProgress(Console(stderr=True)) as progress:
        curation = curation_of(recipe, out, driver, progress, counts=counts, threads=threads)
        for planned in curation.planned:
            planned.check(file_names(curation.data), driver, progress)
        content = curate(curation, progress)
    console, stages = Console(), content["stages"]
    show_stages(console, stages)
    if recipe.balance:
        _report_balance(console, out, driver, plot=plot, counts=counts, most=recipe.balance.most)
    say(
        console,
        f"[green]wrote[/] {escape(str(out))}: {content['rows']:,} of {stages[0]['in']:,} pairs, "
        f"{len(content['shards']):,} shards, digest {content['digest'][:12]}",
    )
    if json_file:
        with writing(json_file):
            write_whole(json_file, json_bytes(content))


def _report_balance(
    console: Console, out: Path, driver: "Driver", *, plot: Path | None, counts: Path | None, most: int
) -> None:
    from model_export.curation.balance_report import show_balance, write_balance_plot
    from model_export.curation.balancing import Passes, count_matches
    from model_export.curation.output import PARQUET, RECORDS, TAR
    from model_export.curation.planned_balance import COUNTS
    from model_export.curation.progress import CurationProgress
    from model_export.curation.query_counts import QueryCounts
    from model_export.curation.query_list import read_queries
    from model_export.curation.recipe_stages import QUERIES_COPY

    if not (shards := sorted([*out.glob(f"*.{PARQUET}"), *out.glob(f"*.{TAR}")])):
        return
    queries = read_queries(out / QUERIES_COPY).queries
    matched = QueryCounts.read(counts or out / RECORDS / COUNTS).matched
    with CurationProgress(Console(stderr=True)) as progress:
        passes = Passes(list(map(str, shards)), driver.run, progress.begin, progress.advance)
        kept = count_matches(passes, len(queries))
    show_balance(console, matched, kept, [query.text for query in queries], most)
    if plot:
        write_balance_plot(plot, matched, kept, most)
        say(console, f"[green]wrote[/] {escape(str(plot))}")
