"""Compute the figures of an evaluation, in pure NumPy: cosines → ranks → accuracies and confusions."""

from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

TOP: Final = 5

Integers: TypeAlias = npt.NDArray[np.int64]
Shares: TypeAlias = npt.NDArray[np.float64]


class Confusion(NamedTuple):
    """Images of class ``true`` taken for class ``taken_for``: their number, and their share of the class."""

    true: int
    taken_for: int
    images: int
    share: float


@dataclass(frozen=True)
class Answers:
    """A model's answers to labelled images, each int64 ``[images]``.

    Attributes:
        targets: the right class.
        taken_for: the class ranked first.
        ranks: the rank of the right class, from 0; of equal classes, the lower index ranks first.
    """

    targets: Integers
    taken_for: Integers
    ranks: Integers


@dataclass(frozen=True)
class Figures:
    """Quality of the answers; shares are 0 to 1.

    Attributes:
        top1: share of the images whose class ranked first.
        top5: share of the images whose class ranked in the first five.
        mean_per_class: the mean of ``class_top1`` over the classes that have images.
        class_images: images of each class, int64 ``[classes]``.
        class_top1: as ``top1`` for each class, float64 ``[classes]``, NaN for a class without images.
        class_top5: as ``top5``, likewise.
        confusions: all confused pairs of classes, by falling number of images.
    """

    images: int
    top1: float
    top5: float
    mean_per_class: float
    class_images: Integers
    class_top1: Shares
    class_top5: Shares
    confusions: tuple[Confusion, ...]


def answers(cosines: npt.NDArray[np.float32], targets: Integers) -> Answers:
    """Rank the classes as the service does: softmax and sigmoid keep the order of cosines.

    Args:
        cosines: float32 ``[images, classes]``.
        targets: the right classes, int64 ``[images]``.
    """
    own = cosines[np.arange(len(targets)), targets][:, None]
    earlier = np.arange(cosines.shape[1]) < targets[:, None]
    ranks = (cosines > own).sum(axis=1) + ((cosines == own) & earlier).sum(axis=1)
    return Answers(targets, cosines.argmax(axis=1).astype(np.int64), ranks.astype(np.int64))


def figures(given: Answers, classes: int) -> Figures:
    """Summarise one or more answers."""
    first, among = given.ranks == 0, given.ranks < TOP
    class_images = np.bincount(given.targets, minlength=classes).astype(np.int64)
    with np.errstate(invalid="ignore"):  # 0 / 0 for a class without images
        class_top1 = np.bincount(given.targets, weights=first, minlength=classes) / class_images
        class_top5 = np.bincount(given.targets, weights=among, minlength=classes) / class_images
    return Figures(
        images=len(given.targets),
        top1=float(first.mean()),
        top5=float(among.mean()),
        mean_per_class=float(np.nanmean(class_top1)),
        class_images=class_images,
        class_top1=class_top1,
        class_top5=class_top5,
        confusions=_confusions(given, class_images),
    )


def confusion_matrix(found: Figures) -> Shares:
    """Return the share of each class (rows) taken for each class (columns), float64 ``[classes, classes]``.

    The row of a class without images is NaN.
    """
    matrix = np.diag(found.class_top1)
    matrix[np.isnan(found.class_top1)] = np.nan
    for confusion in found.confusions:
        matrix[confusion.true, confusion.taken_for] = confusion.share
    return matrix


def _confusions(given: Answers, class_images: Integers) -> tuple[Confusion, ...]:
    wrong = given.taken_for != given.targets
    pairs = np.stack([given.targets[wrong], given.taken_for[wrong]], axis=1)
    unique, counts = np.unique(pairs, axis=0, return_counts=True)
    found = [
        Confusion(int(true), int(taken_for), int(count), float(count / class_images[true]))
        for (true, taken_for), count in zip(unique, counts, strict=True)
    ]
    return tuple(sorted(found, key=lambda confusion: (-confusion.images, -confusion.share)))
