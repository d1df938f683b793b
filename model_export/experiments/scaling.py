"""Error against the operations of training, over widths and budgets (paper, Figure 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from model_export.errors import RecipeError
from model_export.experiments.arms import Variant
from model_export.experiments.harness import Results
from model_export.experiments.recipe import ExperimentRecipe
from model_export.experiments.report import Report, Table, accuracy_table
from model_export.experiments.statistics import Estimate, Line, line_through

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FEWEST_POINTS = 3


def variants(recipe: ExperimentRecipe) -> list[Variant]:
    """Return a variant for each width.

    Raises:
        RecipeError: widths and budgets are too few for a line.
    """
    widths = recipe.scaling.widths
    if len(widths) * len(recipe.budgets) < _FEWEST_POINTS:
        msg = f"scaling.widths and budgets must give {_FEWEST_POINTS} points or more: a line goes through any two"
        raise RecipeError(msg)
    return [Variant(f"width × {width:g}", width=width) for width in widths]


def report(results: Results) -> Report:
    """Fit a line through the logarithms of error and operations."""
    fitted = _line(results, list(results.recipe.seeds))
    slopes = Estimate.of([_line(results, [seed]).slope for seed in results.recipe.seeds])
    table = Table(
        "Logarithm of the error by the logarithm of the GFLOPs: a line through the means of all arms",
        ("points", "slope ± standard error over seeds", "R²"),
        (
            (
                f"{len(results.variants) * len(results.recipe.budgets)}",
                f"{fitted.slope:.3f} ± {slopes.error:.3f}",
                f"{fitted.r_squared:.2f}",
            ),
        ),
    )
    headline = (
        f"ten times the operations multiply the error by {10**fitted.slope:.2f} (slope {fitted.slope:.3f} ± "
        f"{slopes.error:.3f}, R² {fitted.r_squared:.2f})"
    )
    figures = {"slope": fitted.slope, "standard_error": slopes.error, "r_squared": fitted.r_squared}
    return Report([headline], [accuracy_table(results), table], lambda figure: _draw(figure, results, fitted), figures)


def _points(results: Results, budget: int, seeds: list[int]) -> tuple[list[float], list[float]]:
    """Return operations and errors of each width, as means over some seeds."""
    of_seeds = [[arm for arm in results.of(variant, budget) if arm.seed in seeds] for variant in results.variants]
    gflops = [float(np.mean([arm.gflops for arm in arms])) for arms in of_seeds]
    return gflops, [1 - float(np.mean([arm.accuracy["test"] for arm in arms])) for arms in of_seeds]


def _line(results: Results, seeds: list[int]) -> Line:
    points = [_points(results, budget, seeds) for budget in results.recipe.budgets]
    gflops, errors = (np.log10([value for point in points for value in point[side]]) for side in (0, 1))
    return line_through(gflops, errors)


def _draw(figure: Figure, results: Results, fitted: Line) -> None:
    axes = figure.subplots()
    seeds = list(results.recipe.seeds)
    ends: list[float] = []
    for budget in results.recipe.budgets:
        gflops, errors = _points(results, budget, seeds)
        spread = [Estimate.of(results.accuracies(variant, budget)).error for variant in results.variants]
        axes.errorbar(
            gflops,
            [100 * error for error in errors],
            [100 * error for error in spread],
            marker="o",
            linestyle="none",
            capsize=3,
            label=f"{budget:,} pairs",
        )
        ends += gflops
    places = np.array([min(ends), max(ends)])
    label = f"slope {fitted.slope:.3f}, R² {fitted.r_squared:.2f}"
    axes.plot(places, 100 * 10 ** (fitted.intercept + fitted.slope * np.log10(places)), color="#777777", label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("GFLOPs of training")
    axes.set_ylabel("error, %")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
