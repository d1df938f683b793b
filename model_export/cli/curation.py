"""The commands of ``curate``."""

import typer

from model_export.cli.curation_copies import dedup, overlap
from model_export.cli.curation_recipes import match, queries, run, verify
from model_export.cli.curation_stages import balance, filter_pairs

curate = typer.Typer(
    name="curate",
    help="Make a data set from raw image–text pairs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
curate.command()(queries)
curate.command()(run)
curate.command()(match)
curate.command("filter")(filter_pairs)
curate.command()(dedup)
curate.command()(balance)
curate.command()(overlap)
curate.command()(verify)
