"""Arms of an experiment: a variant, a budget, a learning rate and a seed; and what one of them gave."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

from model_export.files import Section

Objective: TypeAlias = Literal["contrastive", "bag of words", "captioning"]

TEST = "test"
"""The name of the accuracy by the template set `default`."""


@dataclass(frozen=True)
class Variant:
    """What an experiment compares; everything else is the same in all of its arms.

    Attributes:
        name: in tables and files.
        objective: that is trained.
        words: in a caption, which its picture does not decide.
        false_share: of the rows with the caption of another row.
        mlp: whether a multi-layer perceptron takes the place of each tower's linear projection.
        template_sets: whether those beside `default` are measured too.
        width: of both towers, in parts of the recipe's.
    """

    name: str
    objective: Objective = "contrastive"
    words: int = 0
    false_share: float = 0.0
    mlp: bool = False
    template_sets: bool = False
    width: float = 1.0


@dataclass(frozen=True)
class Arm:
    """One training."""

    variant: Variant
    budget: int
    rate: float
    seed: int

    @property
    def file_name(self) -> str:
        """Return the name of its result's file."""
        slug = re.sub(r"[^a-z0-9.]+", "-", self.variant.name.lower())
        return f"{slug}-{self.budget}-{self.rate:g}-{self.seed}.json"

    def __str__(self) -> str:
        """Name the arm for people."""
        return f"{self.variant.name}, {self.budget:,} pairs, rate {self.rate:g}, seed {self.seed}"


class Facts(Section):
    """What all arms of an experiment must have in common: the digests of recipe and data."""

    recipe: str
    data: tuple[str, ...]


class Result(Section):
    """What an arm gave.

    Attributes:
        variant: by its name.
        validation: accuracy on the split that chooses the learning rate, by the template set `default`;
            None for an arm that was trained at a rate chosen before.
        accuracy: on the test split, by template set; that of `default` is called `test`.
        gflops: of all steps, forwards and backwards, counted.
        seconds: of training.
        tower: digest of the image tower's initial bits.
        batches: digest of the rows that were seen, in their order.
        facts: of the experiment.
    """

    variant: str
    budget: int
    rate: float
    seed: int
    validation: float | None
    accuracy: dict[str, float]
    gflops: float
    seconds: float
    tower: str
    batches: str
    facts: Facts
