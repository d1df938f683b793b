"""Run the arms of an experiment under the same conditions, resuming arm by arm."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from model_export.errors import RecipeError
from model_export.experiments.arms import TEST, Arm, Facts, Result, Variant
from model_export.experiments.material import Material
from model_export.experiments.recipe import ExperimentRecipe
from model_export.experiments.training import train_arm
from model_export.files import read_object, write_json
from model_export.training.progress import duration
from model_export.training.ranks import Ranks

ARMS = "arms"
"""Folder of the results, a file an arm."""


@dataclass(frozen=True)
class Results:
    """The results of all arms that count: at the chosen rates, for every seed.

    Attributes:
        rates: chosen, by the variant's name and the budget.
        spent_s: seconds of training of all arms, those included that only chose a rate.
    """

    recipe: ExperimentRecipe
    variants: tuple[Variant, ...]
    arms: dict[tuple[str, int, int], Result]
    rates: dict[tuple[str, int], float]
    spent_s: float

    def of(self, variant: Variant, budget: int) -> list[Result]:
        """Return the results of a variant with a budget, one a seed, in their order."""
        return [self.arms[variant.name, budget, seed] for seed in self.recipe.seeds]

    def accuracies(self, variant: Variant, budget: int, name: str = TEST) -> list[float]:
        """Return the accuracies on the test split, one a seed."""
        return [result.accuracy[name] for result in self.of(variant, budget)]


def rate_budgets(recipe: ExperimentRecipe) -> tuple[int, ...]:
    """Return the budgets at which a learning rate is chosen."""
    return recipe.budgets if recipe.optim.choose_rate == "every" else recipe.budgets[:1]


def check_folder(out: Path, facts: Facts) -> dict[str, Result]:
    """Read the results that a folder holds already, by their files' names.

    Raises:
        RecipeError: they are of another recipe or other data, or a file is not a result.
        SourceError: a file cannot be read.
    """
    found = {}
    for path in sorted((out / ARMS).glob("*.json")):
        try:
            result = Result.model_validate(read_object(path, hint="delete it"))
        except ValidationError as exc:
            raise RecipeError(f"{path}: is not the result of an arm; delete it, or name another folder") from exc
        if result.facts != facts:
            other = "recipe" if result.facts.recipe != facts.recipe else "data"
            msg = f"{out}: holds results with another {other}, which cannot be compared; name another folder with --out"
            raise RecipeError(msg)
        found[path.name] = result
    return found


def run_arms(variants: Sequence[Variant], material: Material, out: Path, ranks: Ranks, console: Console) -> Results:
    """Choose a learning rate for each variant from the same grid, then train every seed at every budget.

    An arm whose result is in the folder is not trained again.

    Args:
        variants: to compare.
        material: data and splits.
        out: folder of the results; results lie in ``arms``.
        ranks: a single one, with its device.
        console: shows each arm and an estimate of the time that is left.

    Raises:
        RecipeError: the folder holds results of other arms.
        TrainingError: a loss became non-finite.
    """
    recipe = material.recipe
    done = check_folder(out, material.facts)
    (out / ARMS).mkdir(parents=True, exist_ok=True)
    runner = _Runner(material, out / ARMS, ranks, console, done)
    first = recipe.seeds[0]
    trials = [
        Arm(variant, budget, rate, first)
        for variant in variants
        for budget in rate_budgets(recipe)
        for rate in recipe.optim.rates
    ]
    # At its chosen rate, the first seed's arm of a budget that chooses is done by then.
    later = [
        (variant, budget, seed)
        for variant in variants
        for budget in recipe.budgets
        for seed in recipe.seeds
        if seed != first or budget not in rate_budgets(recipe)
    ]
    runner.expect([(arm.variant, arm.budget) for arm in trials] + [(variant, budget) for variant, budget, _ in later])
    tried: dict[tuple[str, int], dict[float, Result]] = {}
    for arm in trials:
        tried.setdefault((arm.variant.name, arm.budget), {})[arm.rate] = runner.run(arm, validates=True)
    chosen = {key: _best(results) for key, results in tried.items()}
    smallest = recipe.budgets[0]
    rates = {
        (variant.name, budget): chosen.get((variant.name, budget), chosen[variant.name, smallest])
        for variant in variants
        for budget in recipe.budgets
    }
    arms = {(name, budget, first): tried[name, budget][rate] for (name, budget), rate in chosen.items()}
    for variant, budget, seed in later:
        arms[variant.name, budget, seed] = runner.run(
            Arm(variant, budget, rates[variant.name, budget], seed), validates=False
        )
    check_fair(arms.values(), {variant.name: variant.width for variant in variants})
    return Results(recipe, tuple(variants), arms, rates, runner.trained_s)


def _best(results: dict[float, Result]) -> float:
    """Return the rate with the highest accuracy on the validation split; of equal ones the first."""
    return max(results, key=lambda rate: results[rate].validation or 0.0)


def check_fair(results: Iterable[Result], widths: Mapping[str, float]) -> None:
    """Check that arms of one seed began with the same image tower, and those of one budget saw the same batches.

    Args:
        results: of the arms.
        widths: of the towers, by the variant's name: towers of different widths differ.

    Raises:
        RecipeError: they did not; the message names the seed.
    """
    towers: dict[tuple[int, float], str] = {}
    batches: dict[tuple[int, int], str] = {}
    for result in results:
        same_tower = towers.setdefault((result.seed, widths[result.variant]), result.tower) == result.tower
        if not same_tower or batches.setdefault((result.seed, result.budget), result.batches) != result.batches:
            what = "batches" if same_tower else "initial image tower"
            msg = (
                f"{result.variant}, seed {result.seed}: has other {what} than another arm of this seed; the arms "
                "are of different versions of the trainer: name another folder with --out"
            )
            raise RecipeError(msg)


class _Runner:
    """Trains arms, writes their results, and estimates the time that is left."""

    def __init__(
        self, material: Material, folder: Path, ranks: Ranks, console: Console, done: dict[str, Result]
    ) -> None:
        self._material = material
        self._folder = folder
        self._ranks = ranks
        self._console = console
        self._done = done
        self._expected: list[tuple[Variant, int]] = []
        self._at = 0
        self._spent: dict[str, tuple[float, int]] = {}
        """Seconds and pairs of the arms of each objective."""
        self.trained_s = 0.0

    def expect(self, arms: Sequence[tuple[Variant, int]]) -> None:
        """Note all arms to come, in their order."""
        self._expected = list(arms)

    def run(self, arm: Arm, *, validates: bool) -> Result:
        """Return an arm's result, from the folder if it is there."""
        self._at += 1
        number = f"arm {self._at}/{len(self._expected)}"
        result = self._done.get(arm.file_name)
        if result is None:
            started = time.monotonic()
            result = self._train(arm, number, validates=validates)
            write_json(self._folder / arm.file_name, result.model_dump(mode="json"))
            took, state = time.monotonic() - started, ""
        else:
            took, state = result.seconds, ", from before"
        seconds, pairs = self._spent.get(arm.variant.objective, (0.0, 0))
        self._spent[arm.variant.objective] = seconds + took, pairs + arm.budget
        self.trained_s += result.seconds
        left = self._left_s()
        self._console.print(
            f"{number}: {arm}: {100 * result.accuracy[TEST]:.1f}% in {duration(took)}{state}"
            + (f"; about {duration(left)} left" if left else ""),
            highlight=False,
            soft_wrap=True,
        )
        return result

    def _train(self, arm: Arm, number: str, *, validates: bool) -> Result:
        with Progress(
            TextColumn(f"[bold]{number}"),
            BarColumn(),
            TextColumn(str(arm)),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        ) as progress:
            task = progress.add_task("", total=self._material.recipe.steps(arm.budget))
            return train_arm(
                arm,
                self._material,
                self._ranks,
                lambda steps: progress.update(task, completed=steps),
                validates=validates,
            )

    def _left_s(self) -> float:
        """Estimate from the pairs to come, and the time a pair has taken with their objective, or with any."""
        total = [sum(each) for each in zip(*self._spent.values(), strict=True)]
        seconds = 0.0
        for variant, budget in self._expected[self._at :]:
            spent, pairs = self._spent.get(variant.objective, total)
            seconds += budget * spent / pairs
        return seconds
