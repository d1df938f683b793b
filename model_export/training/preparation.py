"""Prepare a run: split the rows, train the tokenizer, plan the batches, choose the held-out images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers

from model_export.checkpoints.model_source import text_section
from model_export.data.augment import Augmentation
from model_export.data.captions import Captioner, all_captions
from model_export.data.held_out import is_held_out
from model_export.data.loading import BatchLoader, open_image
from model_export.data.parquet import PairColumns, ParquetPairs, has_column
from model_export.data.plan import Phase, TrainingPlan
from model_export.data.reader import PairReader
from model_export.errors import DataError, RecipeError
from model_export.families.clip.bpe import END_OF_TEXT
from model_export.families.clip.config import ClipConfig, TextTransformerConfig
from model_export.families.tokenizers import TOKENIZER
from model_export.files import replacing
from model_export.training.recipe import Recipe
from model_export.training.tokenizer import train_tokenizer
from model_export.training.validation import LabelledImages
from service.errors import PromptTooLong
from service.model.manifest import ImageSection
from service.model.resizing import preprocess
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
    _validation: list[tuple[str, npt.NDArray[np.int64]]]

    def validation(self) -> Iterator[LabelledImages]:
        """Decode the held-out images of each file as the service does, and yield them file by file."""
        size = self.model_config.image.image_size
        section = ImageSection(height=size, width=size, **self.recipe.input.model_dump())
        reader = self.loader.reader
        for name, rows in self._validation:
            pixels = np.empty((len(rows), size, size, 3), dtype=np.uint8)
            labels: list[str] = []
            for i, row in enumerate(rows):
                pair = reader[int(row)]
                pixels[i] = preprocess(open_image(reader, int(row), pair.image), section)
                labels.append(pair.label)
            class_names = tuple(sorted(set(labels)))
            index = {label: i for i, label in enumerate(class_names)}
            yield LabelledImages(
                name, pixels, np.array([index[label] for label in labels], dtype=np.int64), class_names
            )


def prepare(recipe: Recipe, run: Path, *, own_tokenizer: bool) -> Prepared:
    """Read the text columns, train the run's tokenizer or load the existing one, and plan the batches.

    Raises:
        DataError: a file cannot be read, or a caption is longer than the context.
        RecipeError: the batch is larger than the data.
    """
    columns, notes = _columns(recipe)
    files = [ParquetPairs(file, columns) for file in recipe.data.files]
    reader = PairReader(
        files,
        # The next window starts while the last batches of the current one are being prepared.
        groups_in_memory=2 * recipe.data.shuffle_window,
    )
    nouns, labels = (list(chain(*column)) for column in zip(*(file.text_columns() for file in files), strict=True))
    words = sorted({*nouns, *labels})
    held_out = _validation_rows(recipe, reader)

    path = run / TOKENIZER
    if own_tokenizer:
        captions = all_captions(sorted({*recipe.captions.templates, *_served_templates(recipe)}), words)
        trained = train_tokenizer(captions, recipe.model.text.vocab_size)
        with replacing(path) as partial:
            trained.save(str(partial))
    backend = tokenizers.Tokenizer.from_file(str(path))
    model_config = _model_config(recipe, backend)
    text = model_config.text
    section = text_section(context_length=text.context_length, pad_id=text.pad_id, end_of_text_id=text.end_of_text_id)
    tokenizer = Tokenizer(backend, section)
    _check_lengths(tokenizer, all_captions(recipe.captions.templates, words))
    # Held-out pictures are measured with these at the end of a run: a caption too long for them is refused now.
    measured = [] if columns.label == columns.text else sorted(set(labels))
    _check_lengths(tokenizer, all_captions(recipe.captions.template_sets["default"], measured))

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
        tokenizer.encode,
        {label: i for i, label in enumerate(sorted(set(labels)))},
        {noun: i for i, noun in enumerate(sorted(set(nouns)))},
    )
    notes += _size_note(recipe, reader)
    held_out_of_classes = [] if columns.label == columns.text else held_out
    return Prepared(
        recipe,
        model_config,
        loader,
        plan,
        plan.train_rows,
        sum(len(rows) for _, rows in held_out),
        tuple(notes),
        held_out_of_classes,
    )


def _columns(recipe: Recipe) -> tuple[PairColumns, list[str]]:
    """Return the columns to read; without class names in captions, the text stands in for a missing class."""
    columns = recipe.data.columns.columns()
    named = "label" in recipe.data.columns.model_fields_set
    if (
        named
        or recipe.captions.class_name_share > 0
        or any(has_column(file, columns.label) for file in recipe.data.files)
    ):
        return columns, []
    note = (
        f"no column {columns.label!r}: pairs with the same text mean the same, and zero-shot accuracy is not measured"
    )
    return replace(columns, label=columns.text), [note]


def _size_note(recipe: Recipe, reader: PairReader) -> list[str]:
    """Return a note if a tower's default image size is far above the size of the first picture."""
    image = recipe.model.image
    size = open_image(reader, 0, reader[0].image).size
    if "image_size" in image.model_fields_set or 2 * max(size) > image.image_size:
        return []
    note = (
        f"model.image.image_size is {image.image_size}, the default of {image.kind}, and the first picture has "
        f"{size[0]}x{size[1]} pixels: a tower of that size is slow and gains nothing; set image_size "
        "(and the patch_size of a vit), see docs/training.md"
    )
    return [note]


def _validation_rows(recipe: Recipe, reader: PairReader) -> list[tuple[str, npt.NDArray[np.int64]]]:
    held_out = []
    for file, first in zip(reader.files, reader.groups.files.tolist(), strict=True):
        rows = np.arange(file.group_rows.sum())
        chosen = first + rows[is_held_out(rows, recipe.data.validation_every)]
        if len(chosen):
            held_out.append((Path(file.name).stem, chosen))
    return held_out


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
