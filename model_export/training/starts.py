"""The model that a run starts with: all of it, or its image tower beside a new text tower."""

from __future__ import annotations

from rich.console import Console
from torch import Tensor

from model_export.checkpoints.at_hand import at_hand
from model_export.checkpoints.choice import Choice
from model_export.checkpoints.load import load_model
from model_export.checkpoints.model_source import ModelSource, SourceOptions
from model_export.errors import RecipeError, SourceError
from model_export.families.clip.config import ClipConfig, ResidualConvConfig
from model_export.families.clip.residual_conv import enlarged_config, enlarged_weights
from model_export.families.family import ModelConfig
from model_export.families.table import FAMILIES, TITLES
from model_export.training.blueprint import (
    Blueprint,
    blueprint_of_source,
    check_fits,
    differences,
    stated_image_size,
)
from model_export.training.image_size import at_image_size
from model_export.training.recipe import Recipe

_IMAGE = "visual."
"""Of the names of an image tower's weights."""


def open_start(source: str, options: SourceOptions | None, recipe: Recipe, console: Console) -> ModelSource:
    """Fetch and read the model to start from, for the recipe's size of pictures; check that it says nothing else.

    Raises:
        SourceError: the source cannot be fetched or read, or is of no family.
        RecipeError: the recipe describes another model; the message names each difference.
    """
    path, options = at_hand(
        source, options or SourceOptions(), console=console, accept=lambda choice: _check_choice(choice, source)
    )
    start = load_model(path, options)
    _check_family(start.config, source)
    size = start.config.image.image_size
    start = at_image_size(start, stated_image_size(recipe) or size, source)
    if recipe.model.from_start == "image":
        _check_image_tower(recipe, start, source)
    else:
        check_fits(recipe, blueprint_of_source(start), source)
    if start.config.image.image_size != size:
        note = (
            f"{source}: position embeddings are interpolated, for pictures of {start.image.height} pixels, not {size}"
        )
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    return start


def _check_choice(choice: Choice, source: str) -> None:
    """Check the kind of a model that is no file, before its weights are downloaded."""
    if choice.text_model is not None:
        raise SourceError(
            f"{source}: is a text model onto the vectors of {choice.text_model.image_model}; a run starts from one of "
            f"{TITLES} with both towers, such as {choice.text_model.image_model}"
        )
    if choice.description is not None:
        _check_family(choice.description.config, source)


def _check_family(config: ModelConfig, source: str) -> None:
    if not any(isinstance(config, family.config) for family in FAMILIES.values()):
        raise SourceError(f"{source}: is a model that open_clip builds; a run starts from one of {TITLES}")


def blueprint_of_start(recipe: Recipe, start: ModelSource) -> Blueprint | None:
    """Return the blueprint that a start gives; None if the recipe takes its image tower only."""
    return None if recipe.model.from_start == "image" else blueprint_of_source(start)


def weights_of_start(recipe: Recipe, start: ModelSource) -> dict[str, Tensor]:
    """Return the weights that a run takes from its start, by our names."""
    weights = start.weights()
    if recipe.model.from_start == "both":
        return weights
    tower = {name.removeprefix(_IMAGE): value for name, value in weights.items() if name.startswith(_IMAGE)}
    if _is_enlarged(recipe, start):
        tower = enlarged_weights(tower)
    return {_IMAGE + name: value for name, value in tower.items()}


def _check_image_tower(recipe: Recipe, start: ModelSource, name: str) -> None:
    config, image = start.config, recipe.model.image
    if not isinstance(config, ClipConfig) or image is None or image.kind != config.image.kind:
        found = config.architecture
        msg = f"{name}: is {found}, the recipe's image tower is {image.kind if image else 'not stated'}"
        raise RecipeError(msg)
    known = config.image
    if _is_enlarged(recipe, start) and isinstance(known, ResidualConvConfig):
        known = enlarged_config(known) or known
    theirs = known.model_dump(mode="json")
    # A field that is left at its default may be missing in either.
    mine = dict.fromkeys(theirs) | image.model_dump(mode="json")
    different = [
        *differences(mine, theirs, "image."),
        *differences({"embed_dim": recipe.model.embed_dim}, {"embed_dim": config.embed_dim}),
    ]
    if different:
        msg = f"{name}: its image tower does not fit the recipe's: {'; '.join(different)}"
        raise RecipeError(msg)
    prepared = start.image.model_dump(mode="json")
    if different := list(differences(recipe.input.model_dump(mode="json"), prepared, "input.")):
        msg = f"{name}: prepares pictures in another way: {'; '.join(different)}. Say the same in [input]"
        raise RecipeError(msg)


def _is_enlarged(recipe: Recipe, start: ModelSource) -> bool:
    """Return whether a recipe wants a whitening tower as one for pictures of twice the size."""
    wanted, config = recipe.model.image, start.config
    return (
        isinstance(config, ClipConfig)
        and isinstance(config.image, ResidualConvConfig)
        and isinstance(wanted, ResidualConvConfig)
        and (config.image.stem, wanted.stem) == ("whitening", "strided")
    )
