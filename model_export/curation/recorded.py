"""Turn what `dataset.json` records into the curation that made the data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from model_export.curation.pieces import InputColumns, PieceSizes
from model_export.curation.query_list import read_queries
from model_export.curation.recipe import Recipe
from model_export.curation.recipe_stages import ENCODER, QUERIES_COPY, Stages, stages_of
from model_export.curation.run import Curation
from model_export.curation.stage import Stage
from model_export.drivers.driver import Driver
from model_export.errors import CurationError, RecipeError, SourceError
from model_export.files import checked

if TYPE_CHECKING:
    from model_export.curation.encoding import BundleEncoder

_OTHER_VERSION: Final = "verify it with the version of anyclass that made it"


def recorded_encoder(recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `BundleEncoder.decides` of the bundle that a data set was made with, or None if it was made without."""
    found = [each[ENCODER] for each in recipe.get("settings", {}).values() if ENCODER in each]
    return dict(found[0]) if found else None


def opened_encoder(folder: Path, recorded: Mapping[str, Any], bundle: Path, threads: int | None) -> BundleEncoder:
    """Open the bundle that a data set was made with, by the recorded provider.

    Args:
        folder: of the data set.
        recorded: from `recorded_encoder`.
        bundle: a folder.
        threads: of the engine in each task.

    Raises:
        CurationError: it is another bundle.
        BundleError, ProviderUnavailable, ConfigurationError: it cannot be run here.
    """
    from model_export.curation.encoding import BundleEncoder  # brings the engine
    from service.model.loading import load_bundle

    manifest = load_bundle(bundle, verify_digests=False).manifest
    if manifest.revision != recorded["revision"]:
        raise CurationError(
            f"{bundle}: is {manifest.name}, revision {manifest.revision}; "
            f"{folder} was made with {bundle_named(recorded)}; name that bundle"
        )
    return BundleEncoder(
        bundle,
        recorded["provider"],
        threads=threads,
        batch_size=recorded["batch_size"],
        preprocessing=recorded["preprocessing"],
    )


def bundle_named(recorded: Mapping[str, Any]) -> str:
    """Return name and revision of a recorded bundle."""
    return f"{recorded['model']}, revision {recorded['revision']}"


def recorded_curation(
    folder: Path, recipe: Mapping[str, Any], driver: Driver, encoder: BundleEncoder | None = None
) -> Curation:
    """Return the curation that a data set was made by, without its data.

    Args:
        folder: of the data set.
        recipe: from its ``dataset.json``.
        driver: runs the tasks.
        encoder: of the bundle, if it was made with one.

    Raises:
        RecipeError: it has settings that this version does not know.
        DataError: its copy of the query list is damaged.
    """
    settings = recipe.get("settings", {})
    if encoder and not settings.keys().isdisjoint(("embed", "score")):
        stages = Stages((_embedding(folder, settings, encoder),), ())
    else:
        stages = _stages(folder, recipe, encoder)
    return Curation(
        (),
        stages.plain,
        folder,
        columns=InputColumns(**recipe["columns"]),
        sizes=PieceSizes(**recipe["sizes"]),
        notes={"settings": settings},
        driver=driver,
        planned=stages.planned,
        kind=recipe["format"],
    )


def _embedding(folder: Path, settings: Mapping[str, Any], encoder: BundleEncoder) -> Stage:
    from model_export.curation.embed import Embed  # brings the engine
    from model_export.curation.score import Score

    try:
        if "embed" in settings:
            return Embed.recorded(encoder, settings["embed"])
        return Score.recorded(encoder, settings["score"])
    except KeyError as error:
        raise RecipeError(f"{folder}: setting {error} is missing; {_OTHER_VERSION}") from error


def _stages(folder: Path, recipe: Mapping[str, Any], encoder: BundleEncoder | None) -> Stages:
    settings = {name: dict(each) for name, each in recipe.get("settings", {}).items()}
    settings.pop("queries", None)
    for name in ("match", "balance"):
        if "queries" in settings.get(name, {}):
            settings[name]["queries"] = str(folder / QUERIES_COPY)
    if encoder and settings.get("filter", {}).pop(ENCODER, None):
        settings["filter"]["bundle"] = str(encoder.bundle.path)
    try:
        known = checked(Recipe, {"data": {"files": ["-"], "columns": recipe["columns"]}, **settings}, folder)
    except SourceError as error:
        raise RecipeError(f"{error}; {_OTHER_VERSION}") from error
    queries = read_queries(folder / QUERIES_COPY) if known.match or known.balance else None
    return stages_of(known, queries, encoder=encoder)
