"""The experiments by their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from model_export.errors import RecipeError
from model_export.experiments import noise, objectives, projection, prompts, scaling
from model_export.experiments.arms import Variant
from model_export.experiments.harness import Results
from model_export.experiments.recipe import ExperimentRecipe
from model_export.experiments.report import Report


@dataclass(frozen=True)
class Experiment:
    """What an experiment compares, and how."""

    variants: Callable[[ExperimentRecipe], list[Variant]]
    report: Callable[[Results], Report]


EXPERIMENTS: Final[Mapping[str, Experiment]] = {
    "noise": Experiment(noise.variants, noise.report),
    "objectives": Experiment(objectives.variants, objectives.report),
    "projection": Experiment(projection.variants, projection.report),
    "prompts": Experiment(prompts.variants, prompts.report),
    "scaling": Experiment(scaling.variants, scaling.report),
}


def experiment_named(name: str) -> Experiment:
    """Return an experiment.

    Raises:
        RecipeError: none has this name; the message lists all.
    """
    if name not in EXPERIMENTS:
        raise RecipeError(f"{name!r} is not an experiment; take one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]
