"""Contrastive learning from pairs of which a share has the caption of another picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_export.experiments.arms import Variant
from model_export.experiments.harness import Results
from model_export.experiments.recipe import ExperimentRecipe
from model_export.experiments.report import Report, Table, accuracy_table, draw_curve
from model_export.experiments.statistics import Estimate, difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def variants(recipe: ExperimentRecipe) -> list[Variant]:
    """Return a variant for each share of false captions."""
    return [Variant(f"{100 * share:g}% false", false_share=share) for share in recipe.noise.shares]


def report(results: Results) -> Report:
    """Compare each share with the smallest, seed by seed."""
    cleanest, *others = results.variants
    rows, figures = [], []
    for budget in results.recipe.budgets:
        for variant in others:
            loss = difference(results.accuracies(cleanest, budget), results.accuracies(variant, budget))
            rows.append((f"{budget:,}", variant.name, f"{100 * loss.mean:.1f} ± {100 * loss.error:.1f}"))
            figures.append(
                {"pairs": budget, "share": variant.false_share, "lost": loss.mean, "standard_error": loss.error}
            )
    table = Table(
        f"Points of accuracy lost to {cleanest.name}, paired by seed ± standard error",
        ("pairs", "captions", "lost"),
        tuple(rows),
    )
    budget = results.recipe.budgets[-1]
    first, last = (Estimate.of(results.accuracies(variant, budget)) for variant in (cleanest, others[-1]))
    headline = (
        f"{budget:,} pairs: {first.percent()}% with {cleanest.name}, {last.percent()}% with {others[-1].name} captions"
    )
    return Report(
        [headline], [accuracy_table(results), table], lambda figure: _draw(figure, results), {"lost": figures}
    )


def _draw(figure: Figure, results: Results) -> None:
    axes = figure.subplots()
    shares = [100 * variant.false_share for variant in results.variants]
    for budget in results.recipe.budgets:
        estimates = [Estimate.of(results.accuracies(variant, budget)) for variant in results.variants]
        draw_curve(axes, shares, estimates, f"{budget:,} pairs")
    axes.set_xlabel("false captions, %")
    axes.set_ylabel("top-1, %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
