"""Read the recipe of a curation: a TOML file, checked completely before any costly work."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

from pydantic import Field, PositiveInt

from model_export.curation.match import Match
from model_export.curation.pieces import InputColumns, PieceSizes
from model_export.curation.query_list import QueryList, read_queries
from model_export.curation.run import Curation
from model_export.curation.stage import Stage
from model_export.curation.text_filter import TextFilter
from model_export.data.locations import is_url
from model_export.drivers.driver import Driver
from model_export.errors import RecipeError, SourceError
from model_export.files import Section, checked

QUERIES_COPY: Final = "records/queries.tsv"
"""The query list, in the output folder: `curate verify` needs nothing but it and the data."""


class ColumnsSection(Section):
    """Names of the columns in the data."""

    id: str = "id"
    text: str = "text"
    image: str = "image"
    image_ref: str = "image_ref"
    url: str = "url"
    label: str = "label"


class DataSection(Section):
    """Files of the pairs, relative to the recipe's folder."""

    files: tuple[str, ...] = Field(min_length=1)
    columns: ColumnsSection = ColumnsSection()


class MatchSection(Section):
    """Stage ``match``: the list, relative to the recipe's folder."""

    queries: str
    keep_unmatched: bool = False


class FilterSection(Section):
    """Stage ``filter``; see `TextFilter`."""

    languages: tuple[str, ...] = Field(default=("en",), min_length=1)
    confidence: float = Field(default=0.25, gt=0, le=1)


class OutputSection(Section):
    """Sizes in MiB, uncompressed: of the data of a shard, and of a table in memory."""

    shard_mib: PositiveInt = 256
    table_mib: PositiveInt = 32


class Recipe(Section):
    """Data and stages; a stage without a section is left out."""

    data: DataSection
    match: MatchSection | None = None
    filter: FilterSection | None = None
    output: OutputSection = OutputSection()


def read_recipe(path: Path) -> Recipe:
    """Read a recipe, with paths as they are seen from the working folder.

    Raises:
        RecipeError: it cannot be read, or a value is wrong; the message names each.
    """
    try:
        content = tomllib.loads(path.read_bytes().decode())
        recipe = checked(Recipe, content, path)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); name a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is not TOML ({error})") from error
    except SourceError as error:
        raise RecipeError(str(error)) from error
    files = tuple(_beside(path, name) for name in recipe.data.files)
    changes: dict[str, Any] = {"data": recipe.data.model_copy(update={"files": files})}
    if recipe.match:
        changes["match"] = recipe.match.model_copy(update={"queries": _beside(path, recipe.match.queries)})
    return recipe.model_copy(update=changes)


def curation_of(recipe: Recipe, out: Path, driver: Driver) -> Curation:
    """Return the curation that a recipe describes.

    Raises:
        DataError: the query list cannot be used.
    """
    queries = read_queries(Path(recipe.match.queries)) if recipe.match else None
    settings = recipe.model_dump(mode="json", include={"match", "filter"}, exclude_none=True)
    if queries and recipe.match:
        settings["match"]["queries"] = {"sha256": queries.digest, "count": len(queries.queries)}
    return Curation(
        recipe.data.files,
        stages_of(recipe, queries),
        out,
        columns=InputColumns(**recipe.data.columns.model_dump()),
        sizes=PieceSizes(recipe.output.shard_mib * 2**20, recipe.output.table_mib * 2**20),
        notes={"settings": settings},
        driver=driver,
        companions={QUERIES_COPY: Path(recipe.match.queries)} if recipe.match else {},
    )


def stages_of(recipe: Recipe, queries: QueryList | None) -> tuple[Stage, ...]:
    """Return the stages of a recipe, in order."""
    stages: list[Stage] = []
    if recipe.match and queries:
        stages.append(Match(queries, keep_unmatched=recipe.match.keep_unmatched))
    if recipe.filter:
        stages.append(TextFilter(recipe.filter.languages, recipe.filter.confidence))
    return tuple(stages)


def recorded_curation(folder: Path, recipe: dict[str, Any]) -> Curation:
    """Return the curation that a data set was made by, without its data.

    Args:
        folder: of the data set.
        recipe: from its ``dataset.json``.

    Raises:
        RecipeError: it has settings that this version does not know.
        DataError: its copy of the query list is damaged.
    """
    settings = dict(recipe.get("settings", {}))
    if "match" in settings:
        settings["match"] = {**settings["match"], "queries": str(folder / QUERIES_COPY)}
    try:
        known = checked(Recipe, {"data": {"files": ["-"], "columns": recipe["columns"]}, **settings}, folder)
    except SourceError as error:
        raise RecipeError(f"{error}; verify it with the version of anyclass that made it") from error
    queries = read_queries(folder / QUERIES_COPY) if known.match else None
    return Curation(
        (),
        stages_of(known, queries),
        folder,
        columns=InputColumns(**recipe["columns"]),
        sizes=PieceSizes(**recipe["sizes"]),
        notes={"settings": recipe.get("settings", {})},
    )


def _beside(recipe: Path, name: str) -> str:
    return name if is_url(name) else str(recipe.parent / name)
