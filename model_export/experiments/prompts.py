"""Bare class names against one template and an ensemble of templates (paper, section 3.1.4 and Figure 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from model_export.errors import RecipeError
from model_export.experiments.arms import TEST, Variant
from model_export.experiments.harness import Results
from model_export.experiments.recipe import ExperimentRecipe
from model_export.experiments.report import Report, Table, accuracy_table, draw_curve, mark_places
from model_export.experiments.statistics import Estimate, difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BARE = ("{}",)
_DEFAULT = "default"


def variants(recipe: ExperimentRecipe) -> list[Variant]:
    """Return one variant, which is measured with every template set.

    Raises:
        RecipeError: no template set is the bare name, or it has no other beside it.
    """
    _sets(recipe)
    return [Variant("contrastive", template_sets=True)]


def report(results: Results) -> Report:
    """Compare each template set with the bare names, seed by seed: a seed's arms are the same model."""
    (variant,) = results.variants
    bare, others = _sets(results.recipe)
    rows, figures = [], []
    headline = []
    for budget in results.recipe.budgets:
        plain = results.accuracies(variant, budget, _key(bare))
        rows.append((f"{budget:,}", bare, "1", Estimate.of(plain).percent(), ""))
        for name in others:
            accuracies = results.accuracies(variant, budget, _key(name))
            gain = difference(accuracies, plain)
            shown = f"{100 * gain.mean:+.1f} ± {100 * gain.error:.1f}"
            count = len(results.recipe.captions.template_sets[name])
            rows.append((f"{budget:,}", name, f"{count}", Estimate.of(accuracies).percent(), shown))
            figures.append({"pairs": budget, "set": name, "gain": gain.mean, "standard_error": gain.error})
            if budget == results.recipe.budgets[-1]:
                headline.append(f"{name} {shown}")
    table = Table(
        "Top-1 accuracy by template set, %, and points gained on the bare names, paired by seed ± standard error",
        ("pairs", "set", "templates", "accuracy", "gain"),
        tuple(rows),
    )
    line = f"{results.recipe.budgets[-1]:,} pairs, points gained on bare names: {', '.join(headline)}"
    return Report([line], [accuracy_table(results), table], lambda figure: _draw(figure, results), {"gain": figures})


def _sets(recipe: ExperimentRecipe) -> tuple[str, list[str]]:
    """Return the name of the set of bare class names, and those of the others."""
    sets = recipe.captions.template_sets
    bare = [name for name, templates in sets.items() if templates == _BARE]
    others = [name for name, templates in sets.items() if templates != _BARE]
    if not bare or not others:
        msg = (
            'captions.template_sets: must hold one set of bare names, such as none = ["{}"], and another to compare; '
            'an example is default = ["a photo of a {}."]'
        )
        raise RecipeError(msg)
    return bare[0], others


def _key(name: str) -> str:
    """Return the name under which a result has the accuracy of a set."""
    return TEST if name == _DEFAULT else name


def _draw(figure: Figure, results: Results) -> None:
    (variant,) = results.variants
    bare, others = _sets(results.recipe)
    axes = figure.subplots()
    budgets = results.recipe.budgets
    for name in (bare, *others):
        estimates = [Estimate.of(results.accuracies(variant, budget, _key(name))) for budget in budgets]
        draw_curve(axes, budgets, estimates, f"{name} ({len(results.recipe.captions.template_sets[name])})")
    mark_places(axes, budgets)
    axes.set_xlabel("pairs")
    axes.set_ylabel("top-1, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, title="template set (templates)")
