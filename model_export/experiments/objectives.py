"""Contrastive learning against a bag of words and against captioning (paper, section 2.3 and Figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from model_export.experiments.arms import Objective, Variant
from model_export.experiments.harness import Results
from model_export.experiments.recipe import ExperimentRecipe
from model_export.experiments.report import Report, Table, accuracy_table, draw_curve, mark_places
from model_export.experiments.statistics import NEVER, Estimate, pairs_to_reach

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OBJECTIVES: tuple[Objective, ...] = ("contrastive", "bag of words", "captioning")
_COLOURS = {"contrastive": "#2a8a43", "bag of words": "#e08a3c", "captioning": "#1f5fa8"}


def variants(recipe: ExperimentRecipe) -> list[Variant]:
    """Return each objective with each number of words."""
    return [
        Variant(_name(objective, words), objective, words=words)
        for words in recipe.objectives.words
        for objective in _OBJECTIVES
    ]


def report(results: Results) -> Report:
    """Compare the pairs that lead to an accuracy."""
    rows, figures, headlines = [], [], []
    for words in results.recipe.objectives.words:
        for accuracy in results.recipe.objectives.reach:
            reached = {objective: _reached(results, objective, words, accuracy) for objective in _OBJECTIVES}
            ratio = shown_ratio(reached["captioning"], reached["contrastive"], results.recipe.budgets)
            rows.append(
                (
                    f"{words}",
                    f"{100 * accuracy:g}%",
                    *(_pairs(reached[objective], results.recipe.budgets) for objective in _OBJECTIVES),
                    ratio,
                )
            )
            figures.append({"words": words, "accuracy": accuracy, "pairs": reached, "captioning_by_contrastive": ratio})
        headlines.append(_headline(results, words))
    table = Table(
        "Pairs to an accuracy: interpolated between budgets, ≤ where the smallest is enough; – where none is",
        ("words", "accuracy", *_OBJECTIVES, "captioning / contrastive"),
        tuple(rows),
    )
    return Report(
        headlines, [accuracy_table(results), table], lambda figure: _draw(figure, results), {"reach": figures}
    )


def _name(objective: Objective, words: int) -> str:
    return f"{objective}, {_count(words)}" if words else f"{objective}, nouns"


def _count(words: int) -> str:
    return "1 word" if words == 1 else f"{words} words"


def _variant(results: Results, objective: Objective, words: int) -> Variant:
    return next(v for v in results.variants if (v.objective, v.words) == (objective, words))


def _estimates(results: Results, objective: Objective, words: int) -> list[Estimate]:
    variant = _variant(results, objective, words)
    return [Estimate.of(results.accuracies(variant, budget)) for budget in results.recipe.budgets]


def _reached(results: Results, objective: Objective, words: int, accuracy: float) -> float | None:
    means = [estimate.mean for estimate in _estimates(results, objective, words)]
    return pairs_to_reach(accuracy, results.recipe.budgets, means)


def shown_ratio(some: float | None, other: float | None, budgets: Sequence[int]) -> str:
    """Return the ratio of the pairs to an accuracy, or its bound: budgets beyond the largest and smallest are unknown.

    Args:
        some: pairs that one arm needs; None if no budget is enough.
        other: pairs that the arm needs to which it is compared.
        budgets: ascending.
    """
    smallest = float(budgets[0])
    if other is None or (some == smallest and other == smallest):
        return NEVER
    ratio = f"{(budgets[-1] if some is None else some) / other:.1f}"
    if some is None:
        return f"> {ratio}"
    if other == smallest:
        return f"≥ {ratio}"
    return f"≤ {ratio}" if some == smallest else ratio


def _pairs(pairs: float | None, budgets: Sequence[int]) -> str:
    if pairs is None:
        return NEVER
    return f"≤ {pairs:,.0f}" if pairs == budgets[0] else f"{pairs:,.0f}"


def _headline(results: Results, words: int) -> str:
    last = {objective: _estimates(results, objective, words)[-1].percent() for objective in _OBJECTIVES}
    regime = f"{_count(words)} beside the noun" if words else "nouns alone"
    shown = ", ".join(f"{objective} {last[objective]}%" for objective in _OBJECTIVES)
    return f"{regime}, {results.recipe.budgets[-1]:,} pairs: {shown}"


def _draw(figure: Figure, results: Results) -> None:
    regimes = results.recipe.objectives.words
    grid = figure.subplots(2, len(regimes), sharey=True, squeeze=False)
    budgets = np.array(results.recipe.budgets)
    for column, words in enumerate(regimes):
        for objective in _OBJECTIVES:
            variant = _variant(results, objective, words)
            estimates = _estimates(results, objective, words)
            gflops = [np.mean([arm.gflops for arm in results.of(variant, budget)]) for budget in budgets.tolist()]
            for row, places in enumerate((budgets, np.array(gflops))):
                axes = grid[row][column]
                draw_curve(axes, places.tolist(), estimates, objective, colour=_COLOURS[objective])
                if objective == "contrastive":
                    mark_places(axes, places.tolist())
        for row, label in enumerate(("pairs", "GFLOPs of training")):
            axes = grid[row][column]
            axes.set_xlabel(label)
            axes.grid(alpha=0.3)
        grid[0][column].set_title(f"{_count(words)} beside the noun" if words else "nouns alone", fontsize=10)
    for row in range(2):
        grid[row][0].set_ylabel("top-1, %")
    grid[0][0].legend(frameon=False, fontsize=8)
    figure.set_size_inches(max(8.0, 3.4 * len(regimes)), 7.0)
