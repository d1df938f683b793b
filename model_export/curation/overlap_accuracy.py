"""Accuracy of a bundle on an evaluation set, with and without the pictures of the training set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_export.errors import CurationError
from model_export.evaluation.data.sources import SampleColumns
from model_export.evaluation.run import Evaluation, ProgressDisplay, Request, evaluate


@dataclass(frozen=True)
class AccuracyChange:
    """Accuracy with and without the overlap; shares are 0 to 1.

    Attributes:
        templates: name of the template set, the bundle's first.
        images: readable pictures of the whole set.
        accuracy: share of them whose class ranked first.
        clean_images: those that are not in the training set.
        clean_accuracy: share of them whose class ranked first.
        difference: accuracy of the whole set, less that of the clean one: the gain by the overlap.
        standard_error: of the difference.
    """

    templates: str
    images: int
    accuracy: float
    clean_images: int
    clean_accuracy: float
    difference: float
    standard_error: float

    @classmethod
    def of(cls, templates: str, whole: tuple[int, float], clean: tuple[int, float]) -> AccuracyChange:
        """Compare two measurements, each a number of pictures and an accuracy.

        The whole set is the clean part and the overlap, which are independent samples. So the difference is the share
        of the overlap, times the difference of the accuracies on both parts.
        """
        (images, accuracy), (others, clean_accuracy) = whole, clean
        both = images - others
        on_both = (images * accuracy - others * clean_accuracy) / both if both else 0.0
        variance = clean_accuracy * (1 - clean_accuracy) / others
        variance += on_both * (1 - on_both) / both if both else 0.0
        error = both / images * math.sqrt(max(0.0, variance))
        return cls(templates, images, accuracy, others, clean_accuracy, accuracy - clean_accuracy, error)

    def as_json(self) -> dict[str, Any]:
        """Return the figures."""
        return asdict(self)


def accuracy_change(
    bundle: Path,
    sets: tuple[Sequence[str], Sequence[str]],
    columns: SampleColumns,
    classes: str | None,
    progress: ProgressDisplay,
) -> AccuracyChange:
    """Measure a bundle on an evaluation set, and on the set without the overlap.

    Args:
        bundle: folder.
        sets: names of the whole set, and of the clean one.
        columns: of both.
        classes: file of the classes; the labels of the data if None.
        progress: of the evaluations.

    Raises:
        CurationError: a class has no clean picture, so both measurements would not have the same classes.
        ModelExportError: bundle or data cannot be used.
    """
    whole, clean = (evaluate(Request(bundle, tuple(names), (), classes, columns=columns), progress) for names in sets)
    if whole.classes != clean.classes:
        raise CurationError("a class has no picture outside the training set; name all classes with --classes")
    templates = next(iter(whole.figures))
    return AccuracyChange.of(templates, _top1(whole, templates), _top1(clean, templates))


def _top1(found: Evaluation, templates: str) -> tuple[int, float]:
    return found.figures[templates].images, found.figures[templates].top1
