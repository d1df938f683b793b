"""Prepare a run: split the rows, train the tokenizer, plan the batches, choose the held-out images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tokenizers

from model_export.checkpoints.model_source import text_section
from model_export.data.augment import Augmentation
from model_export.data.captions import CaptionEncoder, Captioner
from model_export.data.loading import BatchLoader, open_image
from model_export.data.opening import open_pairs
from model_export.data.pairs import BrokenRowError
from model_export.data.parquet import PairColumns
from model_export.data.plan import Phase, TrainingPlan
from model_export.data.reader import PairReader
from model_export.errors import DataError, RecipeError
from model_export.families.clip.bpe import END_OF_TEXT
from model_export.families.clip.config import ClipConfig, TextTransformerConfig
from model_export.families.tokenizers import TOKENIZER
from model_export.files import replacing
from model_export.training.corpus import corpus
from model_export.training.held_out_sets import HeldOutSet, held_out_rows, held_out_sets
from model_export.training.recipe import Recipe
from model_export.training.tokenizer import train_tokenizer
from model_export.training.validation import LabelledImages
from service.errors import PromptTooLong
from service.model.manifest import ImageSection
from service.model.prompts import prompts_for
from service.model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prepared:
    """Data and plan of a run."""

    recipe: Recipe
    model_config: ClipConfig
    loader: BatchLoader
    plan: TrainingPlan
    train_rows: int
    validation_rows: int
    notes: tuple[str, ...]
    """For people, before the first step."""
    _held_out: tuple[HeldOutSet, ...]

    def validation(self) -> Iterator[LabelledImages]:
        """Decode the held-out images as the service does, and yield them set by set."""
        size = self.model_config.image.image_size
        section = ImageSection(height=size, width=size, **self.recipe.input.model_dump())
        for held_out in self._held_out:
            images = held_out.images(self.loader.reader, section, pass_over_broken=self.loader.pass_over_broken)
            if len(images.labels):
                yield images


def prepare(recipe: Recipe, run: Path, *, own_tokenizer: bool) -> Prepared:
    """Open the data, train the run's tokenizer or load the existing one, and plan the batches.

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

    path = run / TOKENIZER
    if own_tokenizer:
        templates = sorted({*recipe.captions.templates, *_served_templates(recipe)})
        trained = train_tokenizer(corpus(reader, templates), recipe.model.text.vocab_size)
        with replacing(path) as partial:
            trained.save(str(partial))
    backend = tokenizers.Tokenizer.from_file(str(path))
    model_config = _model_config(recipe, backend)
    text = model_config.text
    section = text_section(context_length=text.context_length, pad_id=text.pad_id, end_of_text_id=text.end_of_text_id)
    tokenizer = Tokenizer(backend, section)
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
        phases=phases or [Phase(0.0, model_config.image.image_size)],
    )
    if plan.steps_per_epoch == 0:
        msg = f"optim.batch_size {recipe.optim.batch_size} is larger than the {plan.train_rows} pairs to train on"
        raise RecipeError(msg)
    loader = BatchLoader(
        reader,
        plan,
        Augmentation(recipe.augment.crop_area, recipe.augment.shift, recipe.augment.flip, recipe.augment.zoom_area),
        Captioner(recipe.captions.templates, recipe.captions.class_name_share),
        CaptionEncoder(tokenizer, text.context_length),
        pass_over_broken=recipe.data.max_broken > 0,
    )
    return Prepared(
        recipe,
        model_config,
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
    if "image_size" in image.model_fields_set:
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


def _model_config(recipe: Recipe, tokenizer: tokenizers.Tokenizer) -> ClipConfig:
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    text = recipe.model.text.model_dump() | {
        "vocab_size": tokenizer.get_vocab_size(),
        "end_of_text_id": end_of_text,
        "pad_id": end_of_text,
    }
    return ClipConfig(
        embed_dim=recipe.model.embed_dim,
        image=recipe.model.image,
        text=TextTransformerConfig.model_validate(text),
    )


def _check_lengths(tokenizer: Tokenizer, captions: Sequence[str]) -> None:
    try:
        tokenizer.tokenize(captions)
    except PromptTooLong as error:
        caption = captions[error.index or 0]
        msg = f"caption {caption!r} has more tokens than model.text.context_length; raise it, or shorten the caption"
        raise DataError(msg) from error
