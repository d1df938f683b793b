"""A model but for its weights: taken from a source, from a run that is resumed, or from a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from pydantic import BaseModel

from model_export.checkpoints.model_source import ModelSource, text_section
from model_export.checkpoints.training_run import read_run_model
from model_export.errors import RecipeError
from model_export.families.clip.bpe import END_OF_TEXT
from model_export.families.clip.config import ClipConfig, TextTransformerConfig
from model_export.families.family import Family, ModelConfig
from model_export.families.siglip.config import SiglipConfig
from model_export.families.sizes import named_size
from model_export.families.table import family_of
from model_export.training.recipe import Recipe
from service.model.manifest import ImageSection, TextSection

_OF_THE_TOKENIZER = frozenset({"vocab_size", "end_of_text_id", "pad_id"})
"""Fields of a text tower that follow from the tokenizer."""

_OPEN_IN_A_SIZE = _OF_THE_TOKENIZER | {"activation"}
"""Fields that differ among models of one named size."""


@dataclass(frozen=True)
class Blueprint:
    """A model but for its weights.

    Attributes:
        family: of the model.
        config: both towers as data.
        image: how a picture is prepared.
        text: how a text is prepared.
        tokenizer: the bytes of a ``tokenizer.json`` that fits the text tower.
    """

    family: Family[Any]
    config: ModelConfig
    image: ImageSection
    text: TextSection
    tokenizer: bytes


def blueprint_of_source(source: ModelSource) -> Blueprint:
    """Return the blueprint of a model that was read."""
    return Blueprint(family_of(source.config), source.config, source.image, source.text, source.tokenizer)


def blueprint_of_run(run: Path) -> Blueprint:
    """Read the blueprint of a run, finished or not.

    Raises:
        SourceError: a file of the run is missing or corrupt.
    """
    said = read_run_model(run)
    return Blueprint(said.family, said.config.model, said.config.image, said.text, said.tokenizer)


def blueprint_of_recipe(recipe: Recipe, tokenizer: tokenizers.Tokenizer) -> Blueprint:
    """Return the blueprint of a new model, with a tokenizer that was trained for it."""
    config = _new(recipe)
    end = tokenizer.get_vocab()[END_OF_TEXT]
    fixed = family_of(config).padding == "fixed"
    text = text_section(context_length=config.text.context_length, pad_id=end, end_of_text_id=end, fixed=fixed)
    return blueprint_with(recipe, tokenizer.to_str(pretty=True).encode(), text)


def blueprint_with(recipe: Recipe, tokenizer: bytes, text: TextSection) -> Blueprint:
    """Return the blueprint of a new model that reads texts in a given way.

    Args:
        recipe: states the towers.
        tokenizer: the bytes of a ``tokenizer.json``, which decides the text tower's vocabulary.
        text: how a text is prepared.

    Raises:
        RecipeError: the recipe's text tower has another context, or pads in another way.
    """
    config = _new(recipe)
    family = family_of(config)
    context = config.text.context_length
    if (text.max_length, text.padding) != (context, family.padding):
        msg = (
            f"model.text.context_length is {context}, padded to the {family.padding}; the tokenizer is of a model with "
            f"{text.max_length}, padded to the {text.padding}: set the same context_length"
        )
        raise RecipeError(msg)
    vocab_size = tokenizers.Tokenizer.from_str(tokenizer.decode()).get_vocab_size()
    ids = {"vocab_size": vocab_size, "pad_id": text.pad_id}
    if isinstance(config, ClipConfig):
        ids["end_of_text_id"] = text.end_of_text_id
    if isinstance(config, ClipConfig | SiglipConfig):
        config = config.model_copy(update={"text": config.text.model_copy(update=ids)})
    size = config.image.image_size
    image = ImageSection(height=size, width=size, **recipe.input.model_dump())
    return Blueprint(family, config, image, text, tokenizer)


def tokenizer_size(recipe: Recipe) -> int:
    """Return the most tokens of the tokenizer that is trained for a new model."""
    if recipe.model.size is not None:
        return named_size(recipe.model.size).config.text.vocab_size
    return recipe.model.text.vocab_size


def stated_image_size(recipe: Recipe) -> int | None:
    """Return the side of the pictures that a recipe states for its model, in pixels; None if it leaves that open."""
    if recipe.model.size is not None:
        return named_size(recipe.model.size).config.image.image_size
    image = recipe.model.image
    return image.image_size if image is not None and "image_size" in image.model_fields_set else None


def check_fits(recipe: Recipe, start: Blueprint, name: str) -> None:
    """Check that a recipe says nothing else than the model it starts from, which ``name`` names in errors.

    Raises:
        RecipeError: a value of [model], [input] or optim.phases is not the model's; the message names each.
    """
    own = start.config.model_dump(mode="json")
    if recipe.model.is_stated:
        wanted, left_out = _wanted(recipe)
        if different := _other_kind(recipe, start) or list(differences(wanted, own, left_out=left_out)):
            msg = f"{name}: does not fit the recipe's model: {'; '.join(different)}. Leave [model] out to take its own"
            raise RecipeError(msg)
        stated = recipe.model.text
        if "vocab_size" in stated.model_fields_set and stated.vocab_size < start.config.text.vocab_size:
            msg = (
                f"{name}: its tokenizer has up to {start.config.text.vocab_size} tokens, model.text.vocab_size is "
                f"{stated.vocab_size}; a run takes the tokenizer of its start, so leave vocab_size out"
            )
            raise RecipeError(msg)
    given = recipe.input.model_dump(include=recipe.input.model_fields_set, mode="json")
    prepared = start.image.model_dump(mode="json")
    if different := list(differences(given, prepared)):
        msg = f"{name}: prepares pictures in another way: [input] {'; '.join(different)}. Leave [input] out"
        raise RecipeError(msg)
    try:
        recipe.check_phases(start.config.image)
    except ValueError as exc:
        msg = f"{name}: does not fit the recipe: {exc}"
        raise RecipeError(msg) from exc


def differences(
    wanted: Mapping[str, Any], found: Mapping[str, Any], place: str = "", *, left_out: frozenset[str] = frozenset()
) -> Iterator[str]:
    """Yield each field, but for ``left_out``, whose value is another one in a model."""
    for key, value in wanted.items():
        if key in left_out:
            continue
        other = found.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from differences(value, other, f"{place}{key}.", left_out=left_out)
        elif value != other:
            yield f"{place}{key} is {value} in the recipe and {other} there"


def _new(recipe: Recipe) -> ModelConfig:
    config = _stated(recipe)
    if config is None:
        msg = "the recipe states no model: add [model.image], or [model] with a size; or start from a model with --from"
        raise RecipeError(msg)
    return config


def _stated(recipe: Recipe) -> ModelConfig | None:
    """Return the towers that a recipe states; the fields that follow from a tokenizer are still to come."""
    model = recipe.model
    if model.size is not None:
        return named_size(model.size).config
    if model.image is None:
        return None
    text = TextTransformerConfig.model_validate(
        {**model.text.model_dump(), "end_of_text_id": 0, "pad_id": 0}  # the tokenizer is not known yet
    )
    return ClipConfig(embed_dim=model.embed_dim, image=model.image, text=text)


def _wanted(recipe: Recipe) -> tuple[dict[str, Any], frozenset[str]]:
    """Return what a recipe says of a model, as JSON types, and the fields that it leaves open."""
    if recipe.model.size is not None:
        return named_size(recipe.model.size).config.model_dump(mode="json"), _OPEN_IN_A_SIZE
    said = _only_set(recipe.model)
    said.pop("size", None)
    said.pop("from_start", None)
    return said, _OF_THE_TOKENIZER


def _only_set(section: BaseModel) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude_unset=True)


def _other_kind(recipe: Recipe, start: Blueprint) -> list[str]:
    """Return the difference in kind between a recipe's model and a start, if their fields cannot be compared."""
    config = _stated(recipe)
    if config is None or config.architecture == start.config.architecture:
        return []
    return [f"[model] is {_named(recipe)}{config.architecture}, this is {start.config.architecture}"]


def _named(recipe: Recipe) -> str:
    return f"{recipe.model.size}, " if recipe.model.size is not None else ""
