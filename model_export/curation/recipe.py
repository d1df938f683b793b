"""Read the recipe of a curation: a TOML file, checked completely before any costly work."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from model_export.curation.balance import BalanceSettings, Method
from model_export.curation.dedup import DedupSettings
from model_export.curation.image_filter import ImageFilter
from model_export.curation.pieces import InputColumns
from model_export.curation.query_sources import QuerySources
from model_export.curation.text_filter import TextFilter
from model_export.data.locations import is_url
from model_export.errors import RecipeError, SourceError
from model_export.files import Section, checked


class DataSection(Section):
    """Files of the pairs, relative to the recipe's folder."""

    files: tuple[str, ...] = Field(min_length=1)
    columns: InputColumns = InputColumns()


class QueriesSection(Section):
    """Sources of the query list, relative to the recipe's folder; see `QuerySources`."""

    text: tuple[str, ...] = ()
    text_column: str = QuerySources.column
    titles: tuple[str, ...] = ()
    wordnet: str | None = None
    least: PositiveInt = QuerySources.least
    least_pmi: float = QuerySources.least_pmi
    least_views: NonNegativeInt = QuerySources.least_views


class MatchSection(Section):
    """Stage ``match``: the list, relative to the recipe's folder; without one, that of ``queries``."""

    queries: str | None = None
    keep_unmatched: bool = False


class FilterSection(Section):
    """Stages ``filter text``, ``filter images`` and ``clip score``.

    See `TextFilter`, `ImageFilter` and `ClipScore`, which check the values.
    """

    text: bool = True
    languages: tuple[str, ...] = TextFilter.languages
    confidence: float = TextFilter.confidence
    images: bool = False
    shorter_side: int = ImageFilter.shorter_side
    aspect: float = ImageFilter.aspect
    clip_score: float | None = None
    bundle: str | None = None
    provider: str = "auto"


class DedupSection(Section):
    """Stage ``dedup``; see `DedupSettings`, which checks the values."""

    method: str = ",".join(DedupSettings.methods)
    similarity: float = DedupSettings.similarity
    seed: int = DedupSettings.seed


class BalanceSection(Section):
    """Stage ``balance``: the list of matched data; without one, that of the recipe. See `BalanceSettings`."""

    queries: str | None = None
    method: Method = BalanceSettings.method
    most: int = BalanceSettings.most
    seed: int = BalanceSettings.seed


class OutputSection(Section):
    """Sizes in MiB, uncompressed, of the data of a shard and of a table in memory; see `Curation` for the rest."""

    shard_mib: PositiveInt = 256
    table_mib: PositiveInt = 32
    keep_work: bool = False
    format: Literal["parquet", "tar"] = "parquet"


class Recipe(Section):
    """Data and stages; a stage without a section is left out."""

    data: DataSection
    queries: QueriesSection | None = None
    match: MatchSection | None = None
    filter: FilterSection | None = None
    dedup: DedupSection | None = None
    balance: BalanceSection | None = None
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
    check(recipe, str(path))
    changes: dict[str, Any] = {"data": _moved(path, recipe.data, "files")}
    if recipe.queries:
        changes["queries"] = _moved(path, recipe.queries, "text", "titles", "wordnet")
    if recipe.match:
        changes["match"] = _moved(path, recipe.match, "queries")
    if recipe.filter:
        changes["filter"] = _moved(path, recipe.filter, "bundle")
    if recipe.balance:
        changes["balance"] = _moved(path, recipe.balance, "queries")
    return recipe.model_copy(update=changes)


def check(recipe: Recipe, where: str) -> None:
    """Check that each stage has its query list, and one only, and the CLIP score its bundle.

    Raises:
        RecipeError: a list or the bundle is missing, or unused, or a list is named twice.
    """
    match, balance, chosen = recipe.match, recipe.balance, recipe.filter
    wrong = None
    if recipe.queries and not (recipe.queries.text or recipe.queries.titles or recipe.queries.wordnet):
        wrong = "queries: names no source; give text, titles or wordnet"
    elif recipe.queries and not match:
        wrong = "queries: makes a list that no stage uses; add [match]"
    elif match and bool(match.queries) == bool(recipe.queries):
        wrong = "match.queries: name a list, or its sources under [queries], and not both"
    elif balance and match and balance.queries:
        wrong = "balance.queries: is the list of [match]; leave it out"
    elif balance and not match and not balance.queries:
        wrong = "balance.queries: name the list that the data were matched with, or add [match]"
    elif chosen and (chosen.clip_score is None) != (chosen.bundle is None):
        wrong = "filter: clip_score and bundle belong together; give both"
    elif chosen and not (chosen.text or chosen.images or chosen.bundle):
        wrong = "filter: nothing to filter; set text or images to true, or give clip_score and bundle"
    if wrong:
        raise RecipeError(f"{where}: {wrong}")


def _moved(recipe: Path, section: Any, *names: str) -> Any:  # noqa: ANN401 - any section
    """Return a section with the paths under these names relative to the working folder."""
    moved: dict[str, Any] = {}
    for name in names:
        value = getattr(section, name)
        if isinstance(value, str):
            moved[name] = _beside(recipe, value)
        elif value is not None:
            moved[name] = tuple(_beside(recipe, each) for each in value)
    return section.model_copy(update=moved)


def _beside(recipe: Path, name: str) -> str:
    return name if is_url(name) else str(recipe.parent / name)
