"""Prepare a run: split the rows, train a tokenizer if it needs one, plan the batches, choose the held-out images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import tokenizers

from model_export.data.augment import Augmentation
from model_export.data.captions import CaptionEncoder, Captioner
from model_export.data.loading import BatchLoader, open_image
from model_export.data.opening import open_pairs
from model_export.data.pairs import BrokenRowError
from model_export.data.parquet import PairColumns
from model_export.data.plan import Phase, TrainingPlan
from model_export.data.reader import PairReader
from model_export.errors import DataError, RecipeError
from model_export.training.blueprint import Blueprint, blueprint_of_recipe, tokenizer_size
from model_export.training.corpus import corpus
from model_export.training.held_out_sets import HeldOutSet, held_out_rows, held_out_sets
from model_export.training.recipe import Recipe
from model_export.training.tokenizer import train_tokenizer
from model_export.training.validation import LabelledImages
from service.errors import PromptTooLong
from service.model.prompts import prompts_for
from service.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prepared:
    """Data and plan of a run."""

    recipe: Recipe
    blueprint: Blueprint
    loader: BatchLoader
    plan: TrainingPlan
    train_rows: int
    validation_rows: int
    notes: tuple[str, ...]
    """For people, before the first step."""
    _held_out: tuple[HeldOutSet, ...]

    def validation(self) -> Iterator[LabelledImages]:
        """Decode the held-out images as the service does, and yield them set by set."""
        section = self.blueprint.image
        for held_out in self._held_out:
            images = held_out.images(self.loader.reader, section, pass_over_broken=self.loader.pass_over_broken)
            if len(images.labels):
                yield images


def prepare(recipe: Recipe, blueprint: Blueprint | None = None) -> Prepared:
    """Open the data, and plan the batches; without a blueprint, train the tokenizer of a new model.

    Raises:
        DataError: a file cannot be read, or a prompt that held-out pictures are measured with is too long.
        RecipeError: the batch is larger than the data.
    """
    columns = _columns(recipe)
    reader = PairReader(
        open_pairs(recipe.data.files, columns),
        # The next window starts while the last batches of the current one are being prepared.
        groups_in_memory=2 * recipe.data.shuffle_window,
    )
    held_out = held_out_sets(reader, recipe.data.validation_every)

    if blueprint is None:
        templates = sorted({*recipe.captions.templates, *_served_templates(recipe)})
        blueprint = blueprint_of_recipe(recipe, train_tokenizer(corpus(reader, templates), tokenizer_size(recipe)))
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(blueprint.tokenizer.decode()), blueprint.text)
    # Held-out pictures are measured with these at the end of a run: a prompt too long for them is refused now.
    for each in held_out:
        _check_lengths(tokenizer, prompts_for(each.class_names, recipe.captions.template_sets["default"]))

    phases = [Phase(phase.start, phase.size, phase.zoom_share) for phase in recipe.optim.phases]
    plan = TrainingPlan(
        reader.groups,
        held_out_every=recipe.data.validation_every,
        seed=recipe.seed,
        batch_size=recipe.optim.batch_size,
        epochs=recipe.optim.epochs,
        window=recipe.data.shuffle_window,
        phases=phases or [Phase(0.0, blueprint.config.image.image_size)],
    )
    if plan.steps_per_epoch == 0:
        msg = f"optim.batch_size {recipe.optim.batch_size} is larger than the {plan.train_rows} pairs to train on"
        raise RecipeError(msg)
    loader = BatchLoader(
        reader,
        plan,
        Augmentation(
            recipe.augment.crop_area,
            recipe.augment.shift,
            recipe.augment.flip,
            recipe.augment.zoom_area,
            squash=blueprint.image.resize == "squash",
            interpolation=blueprint.image.interpolation,
        ),
        Captioner(recipe.captions.templates, recipe.captions.class_name_share),
        CaptionEncoder(tokenizer, blueprint.text.max_length),
        pass_over_broken=recipe.data.max_broken > 0,
    )
    return Prepared(
        recipe,
        blueprint,
        loader,
        plan,
        plan.train_rows,
        held_out_rows(reader, recipe.data.validation_every),
        tuple(_class_note(recipe, reader) + _size_note(recipe, reader)),
        tuple(held_out),
    )


def _columns(recipe: Recipe) -> PairColumns:
    """Return the columns to read; the class is required if the recipe names its column or wants it in captions."""
    captions = recipe.captions
    named = "label" in recipe.data.columns.model_fields_set
    in_captions = "class_name_share" in captions.model_fields_set and captions.class_name_share > 0
    return replace(recipe.data.columns.columns(), label_required=named or in_captions)


def _class_note(recipe: Recipe, reader: PairReader) -> list[str]:
    if any(file.has_labels for file in reader.files):
        return []
    label = recipe.data.columns.label
    return [f"no column {label!r}: pairs with the same text mean the same, and zero-shot accuracy is not measured"]


def _size_note(recipe: Recipe, reader: PairReader) -> list[str]:
    """Return a note if a tower's default image size is far above the size of the first picture."""
    image = recipe.model.image
    if image is None or "image_size" in image.model_fields_set:
        return []
    try:
        size = open_image(reader, 0, reader[0].image).size
    except BrokenRowError:
        if recipe.data.max_broken == 0:
            raise
        return []
    if 2 * max(size) > image.image_size:
        return []
    note = (
        f"model.image.image_size is {image.image_size}, the default of {image.kind}, and the first picture has "
        f"{size[0]}x{size[1]} pixels: a tower of that size is slow and gains nothing; set image_size "
        "(and the patch_size of a vit), see docs/training.md"
    )
    return [note]


def _served_templates(recipe: Recipe) -> set[str]:
    return {template for templates in recipe.captions.template_sets.values() for template in templates}


def _check_lengths(tokenizer: Tokenizer, captions: Sequence[str]) -> None:
    try:
        tokenizer.tokenize(captions)
    except PromptTooLong as error:
        caption = captions[error.index or 0]
        msg = f"caption {caption!r} has more tokens than model.text.context_length; raise it, or shorten the caption"
        raise DataError(msg) from error
