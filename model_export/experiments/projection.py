"""A linear against a non-linear projection into the joint space (paper, section 2.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_export.experiments.arms import Variant
from model_export.experiments.harness import Results
from model_export.experiments.recipe import ExperimentRecipe
from model_export.experiments.report import Report, Table, accuracy_table, draw_curve, mark_places
from model_export.experiments.statistics import Estimate, difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINEAR, _MLP = Variant("linear projection"), Variant("MLP projection", mlp=True)


def variants(recipe: ExperimentRecipe) -> list[Variant]:  # noqa: ARG001 - the recipe decides nothing here
    """Return both projections."""
    return [_LINEAR, _MLP]


def report(results: Results) -> Report:
    """Compare both projections seed by seed, with two standard errors."""
    rows, figures = [], []
    gain = Estimate(0.0, 0.0)
    for budget in results.recipe.budgets:
        gain = difference(results.accuracies(_MLP, budget), results.accuracies(_LINEAR, budget))
        rows.append((f"{budget:,}", f"{100 * gain.mean:+.1f}", f"{200 * gain.error:.1f}"))
        figures.append({"pairs": budget, "gain": gain.mean, "standard_error": gain.error})
    table = Table(
        "MLP less linear, points of accuracy, paired by seed",
        ("pairs", "difference", "two standard errors"),
        tuple(rows),
    )
    beyond = abs(gain.mean) > 2 * gain.error
    headline = (
        f"{results.recipe.budgets[-1]:,} pairs: an MLP changes accuracy by {100 * gain.mean:+.1f} ± "
        f"{200 * gain.error:.1f} points (two standard errors), "
        + ("more than its error" if beyond else "no more than its error")
    )
    return Report(
        [headline], [accuracy_table(results), table], lambda figure: _draw(figure, results), {"gain": figures}
    )


def _draw(figure: Figure, results: Results) -> None:
    axes = figure.subplots()
    budgets = results.recipe.budgets
    for variant, colour in ((_LINEAR, "#2a8a43"), (_MLP, "#1f5fa8")):
        estimates = [Estimate.of(results.accuracies(variant, budget)) for budget in budgets]
        draw_curve(axes, budgets, estimates, variant.name, errors=2, colour=colour)
    mark_places(axes, budgets)
    axes.set_xlabel("pairs")
    axes.set_ylabel("top-1, %, ± two standard errors")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
