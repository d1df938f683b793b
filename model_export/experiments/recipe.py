"""Read the recipe of an experiment: a TOML file, checked completely before any costly work."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from model_export.files import Section
from model_export.training.recipe import (
    AugmentSection,
    CaptionsSection,
    ColumnsSection,
    DataSection,
    ImageInputSection,
    ModelSection,
    ObjectiveSection,
    OptimSection,
    Recipe,
)
from model_export.training.recipe_file import located, read_recipe_file

_RATES = 3
_OWN_SECTIONS = frozenset({"noise", "objectives", "scaling"})
"""Sections that one experiment reads, by its name."""


class ExperimentDataSection(Section):
    """Files of the pairs, as in a recipe of a training, and the pictures that accuracy is measured on."""

    files: tuple[str, ...] = Field(min_length=1)
    test: tuple[str, ...] = ()
    """Labelled files. Without them, every other held-out row is for the test and the rest for the learning rate."""
    columns: ColumnsSection = ColumnsSection()
    validation_every: int = Field(default=25, ge=2)
    most_measured: PositiveInt = 2000
    """Pictures of a split that accuracy is measured on; of more, evenly spaced ones."""
    shuffle_window: PositiveInt = 64
    workers: NonNegativeInt = 0


class ExperimentOptimSection(Section):
    """The optimiser, which is the same for every arm; its learning rate is the best of a grid of three."""

    batch_size: int = Field(default=256, ge=2)
    rates: tuple[PositiveFloat, ...] = (3e-4, 1e-3, 3e-3)
    choose_rate: Literal["smallest", "every"] = "smallest"
    """Budgets at which the rate is chosen, with the first seed and on the validation split."""
    weight_decay: float = Field(default=0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: PositiveFloat = 1e-6
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps."""
    clip_grad_norm: PositiveFloat | None = 1.0
    precision: Literal["auto", "bf16", "fp32"] = "auto"

    @model_validator(mode="after")
    def _grid(self) -> ExperimentOptimSection:
        if len(set(self.rates)) != _RATES:
            msg = f"rates must hold {_RATES} different learning rates: every arm has the same grid"
            raise ValueError(msg)
        return self


class DecoderSection(Section):
    """The decoder of captions: causal self-attention, and cross-attention to the image tower's features."""

    width: PositiveInt = 128
    layers: PositiveInt = 1
    heads: PositiveInt = 4

    @model_validator(mode="after")
    def _divides(self) -> DecoderSection:
        if self.width % self.heads:
            msg = f"width {self.width} is not a multiple of {self.heads} heads"
            raise ValueError(msg)
        return self


class ObjectivesSection(Section):
    """What `experiment objectives` compares."""

    words: tuple[NonNegativeInt, ...] = Field(default=(0, 8), min_length=1)
    """Words in a caption that its picture does not decide, each a regime of its own."""
    reach: tuple[float, ...] = (0.1, 0.2, 0.3)
    """Accuracies, for each of which the pairs that lead to it are interpolated."""
    decoder: DecoderSection = DecoderSection()

    @model_validator(mode="after")
    def _different(self) -> ObjectivesSection:
        if len(set(self.words)) != len(self.words):
            msg = "words must hold different numbers"
            raise ValueError(msg)
        if any(not 0 < accuracy < 1 for accuracy in self.reach):
            msg = "reach must hold accuracies between 0 and 1"
            raise ValueError(msg)
        return self


class NoiseSection(Section):
    """What `experiment noise` compares."""

    shares: tuple[float, ...] = Field(default=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5), min_length=2)
    """Shares of rows with a false caption."""

    @model_validator(mode="after")
    def _shares(self) -> NoiseSection:
        if sorted({*self.shares}) != list(self.shares) or not 0 <= self.shares[0] <= self.shares[-1] <= 1:
            msg = "shares must be between 0 and 1, and ascending"
            raise ValueError(msg)
        return self


class ScalingSection(Section):
    """What `experiment scaling` compares."""

    widths: tuple[PositiveFloat, ...] = Field(default=(0.5, 0.7, 1.0, 1.4, 2.0), min_length=1)
    """Of both towers, in parts of the widths under [model]."""

    @model_validator(mode="after")
    def _ascending(self) -> ScalingSection:
        if sorted({*self.widths}) != list(self.widths):
            msg = "widths must be different and ascending"
            raise ValueError(msg)
        return self


class ExperimentRecipe(Section):
    """Everything that decides an experiment, except for its name and the machine."""

    budgets: tuple[PositiveInt, ...] = Field(min_length=1)
    """Pairs that an arm sees, ascending; of more pairs than rows, several epochs."""
    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)
    data: ExperimentDataSection
    augment: AugmentSection = AugmentSection()
    captions: CaptionsSection = CaptionsSection(templates=("{}",), template_sets={"default": ("{}",)})
    input: ImageInputSection = ImageInputSection()
    model: ModelSection
    optim: ExperimentOptimSection = ExperimentOptimSection()
    objectives: ObjectivesSection = ObjectivesSection()
    noise: NoiseSection = NoiseSection()
    scaling: ScalingSection = ScalingSection()

    @model_validator(mode="after")
    def _fits(self) -> ExperimentRecipe:
        if sorted({*self.budgets}) != list(self.budgets):
            msg = "budgets must be different and ascending"
            raise ValueError(msg)
        if self.budgets[0] < 2 * self.optim.batch_size:
            msg = f"the smallest budget must be two batches or more, {2 * self.optim.batch_size} pairs"
            raise ValueError(msg)
        if len(set(self.seeds)) != len(self.seeds) or len(self.seeds) < 2:
            msg = "seeds must hold two or more different numbers: a standard error needs them"
            raise ValueError(msg)
        if self.model.image is None or self.model.from_start != "both":
            msg = "model must state its towers: add [model.image]; every arm starts from new weights"
            raise ValueError(msg)
        return self

    def steps(self, budget: int) -> int:
        """Return the steps of a budget."""
        return budget // self.optim.batch_size

    def training(self, *, seed: int, rate: float, budget: int) -> Recipe:
        """Return the recipe of one arm's training."""
        optim = self.optim
        return Recipe(
            name="arm",
            seed=seed,
            data=DataSection(
                files=self.data.files,
                columns=self.data.columns,
                validation_every=self.data.validation_every,
                shuffle_window=self.data.shuffle_window,
                workers=self.data.workers,
            ),
            augment=self.augment,
            # A caption is decided before: a row is called by its class or by its text.
            captions=self.captions.model_copy(update={"class_name_share": 0.0}),
            input=self.input,
            model=self.model,
            objective=ObjectiveSection(loss="softmax"),
            optim=OptimSection(
                epochs=1,
                batch_size=optim.batch_size,
                lr=rate,
                weight_decay=optim.weight_decay,
                betas=optim.betas,
                eps=optim.eps,
                warmup_steps=round(optim.warmup * self.steps(budget)),
                clip_grad_norm=optim.clip_grad_norm,
                precision=optim.precision,
            ),
            log_every=self.steps(budget),
            checkpoint_every=self.steps(budget),
        )


def read_experiment(path: Path, *, data: Path | None = None) -> ExperimentRecipe:
    """Read and check a recipe.

    Args:
        path: the TOML file.
        data: base folder of the data files that are no URLs; by default the recipe's own folder.

    Raises:
        RecipeError: the file cannot be read, is not TOML, or has unknown keys or invalid values.
    """
    recipe = read_recipe_file(path, ExperimentRecipe)
    base = data or path.parent
    update = {name: tuple(located(file, base) for file in getattr(recipe.data, name)) for name in ("files", "test")}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=update)})


def digest(name: str, recipe: ExperimentRecipe) -> str:
    """Hash what decides the arms of an experiment: all but folders, loading processes, and other experiments' keys."""
    content: dict[str, Any] = recipe.model_dump(mode="json")
    for key in ("files", "test"):
        content["data"][key] = [Path(file).name for file in content["data"][key]]
    del content["data"]["workers"]
    del content["objectives"]["reach"]  # read off the finished arms
    for other in _OWN_SECTIONS - {name}:
        del content[other]
    return hashlib.sha256(repr((name, content)).encode()).hexdigest()
