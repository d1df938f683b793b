"""The data of an experiment: pairs to train on, and two splits that no arm sees, checked to be apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import tokenizers

from model_export.data.augment import Augmentation
from model_export.data.captions import CaptionEncoder, Captioner
from model_export.data.held_out import is_held_out
from model_export.data.loading import BatchLoader
from model_export.data.opening import open_pairs
from model_export.data.pairs import Rows, Texts
from model_export.data.plan import Phase, TrainingPlan
from model_export.data.reader import PairReader
from model_export.errors import DataError, RecipeError
from model_export.experiments.arms import Arm, Facts, Variant
from model_export.experiments.captions import CaptionedReader, row_captions
from model_export.experiments.recipe import ExperimentRecipe, digest
from model_export.experiments.words import WORDS
from model_export.training.blueprint import Blueprint, blueprint_of_recipe, tokenizer_size
from model_export.training.corpus import corpus
from model_export.training.held_out_sets import HeldOutSet, held_out_sets
from model_export.training.preparation import Prepared
from model_export.training.recipe import Recipe
from model_export.training.tokenizer import train_tokenizer
from model_export.training.validation import LabelledImages
from service.model.prompts import fill
from service.model.tokenizer import Tokenizer

_EVERY_ROW = 1
"""Of a test file."""


@dataclass(frozen=True)
class Material:
    """Data, tokenizer and splits, the same for every arm.

    Attributes:
        validation: chooses learning rates.
        test: gives the accuracies.
        trained: rows that arms may see, ascending.
    """

    recipe: ExperimentRecipe
    facts: Facts
    reader: PairReader
    texts: tuple[Texts, ...]
    trained: Rows
    blueprint: Blueprint
    encode: CaptionEncoder
    validation: LabelledImages
    test: LabelledImages

    def captions(self, variant: Variant) -> list[str | None]:
        """Return each row's caption in the arms of a variant, without a template."""
        return row_captions(
            self.texts,
            self.trained,
            class_name_share=self.recipe.captions.class_name_share,
            words=variant.words,
            false_share=variant.false_share,
        )

    def prepare(self, arm: Arm, captions: Sequence[str | None], training: Recipe) -> Prepared:
        """Plan the batches of an arm: those of a larger budget begin with those of a smaller one.

        Raises:
            RecipeError: the batch is larger than the data.
        """
        recipe, image = self.recipe, self.blueprint.image
        steps = recipe.steps(arm.budget)
        plan = TrainingPlan(
            self.reader.groups,
            held_out_every=recipe.data.validation_every,
            seed=arm.seed,
            batch_size=recipe.optim.batch_size,
            epochs=1,
            window=recipe.data.shuffle_window,
            phases=[Phase(0.0, self.blueprint.config.image.image_size)],
        )
        if plan.steps_per_epoch == 0:
            msg = f"optim.batch_size {recipe.optim.batch_size} is larger than the {plan.train_rows} pairs to train on"
            raise RecipeError(msg)
        plan.total_steps = steps
        augment = recipe.augment
        loader = BatchLoader(
            CaptionedReader(self.reader.files, captions, groups_in_memory=2 * recipe.data.shuffle_window),
            plan,
            Augmentation(
                augment.crop_area,
                augment.shift,
                augment.flip,
                augment.zoom_area,
                squash=image.resize == "squash",
                interpolation=image.interpolation,
            ),
            Captioner(recipe.captions.templates, class_name_share=0.0),
            self.encode,
        )
        return Prepared(training, self.blueprint, loader, plan, plan.train_rows, 0, (), ())


def open_material(name: str, recipe: ExperimentRecipe, variants: Sequence[Variant]) -> Material:
    """Open the files, train the tokenizer, decode both splits, and check that no arm sees their pictures.

    Raises:
        DataError: a file cannot be read, has no held-out rows with a class, or holds a picture of a split that is
            also trained on.
        RecipeError: the batch is larger than the data.
    """
    columns = replace(recipe.data.columns.columns(), label_required=True)
    every = recipe.data.validation_every
    reader = PairReader(open_pairs(recipe.data.files, columns), groups_in_memory=2 * recipe.data.shuffle_window)
    held_out = _joined(held_out_sets(reader, every), "the held-out rows")
    if recipe.data.test:
        tested = PairReader(open_pairs(recipe.data.test, columns), groups_in_memory=2)
        validation, test = held_out, _joined(held_out_sets(tested, _EVERY_ROW), "data.test")
    else:
        tested = reader
        validation, test = (_part(held_out, which) for which in (slice(0, None, 2), slice(1, None, 2)))
    most = recipe.data.most_measured
    validation, test = _spread(validation, most), _spread(test, most)
    trained = _trained(reader, every)
    _check_apart(reader, trained, [(reader, validation), (tested, test)])
    texts = tuple(reader.texts(most=len(reader)))
    training = recipe.training(seed=0, rate=recipe.optim.rates[0], budget=recipe.budgets[0])
    templates = sorted({*recipe.captions.templates, *(t for ts in recipe.captions.template_sets.values() for t in ts)})
    blueprint = blueprint_of_recipe(
        training, train_tokenizer(_corpus(reader, templates, variants), tokenizer_size(training))
    )
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(blueprint.tokenizer.decode()), blueprint.text)
    names = tuple(sorted({*validation.labels, *test.labels}))
    images = [
        _named(each.images(of, blueprint.image, pass_over_broken=False), names)
        for of, each in ((reader, validation), (tested, test))
    ]
    digests = tuple(file.digest for each in {id(reader): reader, id(tested): tested}.values() for file in each.files)
    return Material(
        recipe,
        Facts(recipe=digest(name, recipe), data=digests),
        reader,
        texts,
        trained,
        blueprint,
        CaptionEncoder(tokenizer, blueprint.text.max_length),
        images[0],
        images[1],
    )


def _corpus(reader: PairReader, templates: Sequence[str], variants: Sequence[Variant]) -> Iterator[str]:
    """Yield captions for the tokenizer, which also has to know the words around the nouns."""
    yield from corpus(reader, templates)
    if any(variant.words for variant in variants):
        yield from (fill(template, word) for word in WORDS for template in templates)


def _joined(sets: Sequence[HeldOutSet], name: str) -> HeldOutSet:
    rows = np.concatenate([np.empty(0, np.int64), *(each.rows for each in sets)])
    labels = tuple(label for each in sets for label in each.labels)
    if len(set(labels)) < 2 or len(rows) < 4:
        msg = f"{name}: hold {len(rows)} pictures of {len(set(labels))} classes, too few to measure an accuracy"
        raise DataError(msg)
    return HeldOutSet(name, rows, labels)


def _part(held_out: HeldOutSet, which: slice) -> HeldOutSet:
    return replace(held_out, rows=held_out.rows[which], labels=held_out.labels[which])


def _spread(held_out: HeldOutSet, most: int) -> HeldOutSet:
    """Return evenly spaced rows, at most ``most``."""
    index = np.linspace(0, len(held_out.rows) - 1, min(len(held_out.rows), most)).astype(np.int64)
    return replace(held_out, rows=held_out.rows[index], labels=tuple(held_out.labels[i] for i in index.tolist()))


def _trained(reader: PairReader, every: int) -> Rows:
    rows = np.arange(len(reader), dtype=np.int64)
    trained: Rows = rows[~is_held_out(rows - reader.groups.first_of_file(rows), every)]
    return trained


def _named(images: LabelledImages, names: tuple[str, ...]) -> LabelledImages:
    """Return a split whose classes are those of both splits."""
    numbers = np.array([names.index(own) for own in images.class_names], dtype=np.int64)
    return replace(images, labels=numbers[images.labels], class_names=names)


def _check_apart(reader: PairReader, trained: Rows, splits: Sequence[tuple[PairReader, HeldOutSet]]) -> None:
    """Refuse a picture of a split that is among those to train on, byte by byte."""
    places = {}
    for of, split in splits:
        for row in split.rows.tolist():
            places[hashlib.sha256(of[row].image).digest()] = of.where(row)
    found = []
    for row in trained.tolist():
        place = places.get(hashlib.sha256(reader[row].image).digest())
        if place is not None:
            found.append((place, reader.where(row)))
    if found:
        (measured, other), count = found[0], len({place for place, _ in found})
        msg = (
            f"{measured}: is also a training picture ({other}), as are {count - 1} others that accuracy is measured "
            "on; remove copies with 'anyclass-export curate dedup', or name other files under data.test"
        )
        raise DataError(msg)
