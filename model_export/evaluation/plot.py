"""Plot an evaluation: bars for the template sets, and a confusion matrix if it is small enough to read."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from model_export.evaluation.figures import Figures, confusion_matrix
from model_export.evaluation.run import Evaluation
from model_export.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CLASSES: Final = 100
"""Above this, a confusion matrix has no room for names."""

_DPI: Final = 120
_WIDTH: Final = 7.0
_MEASURES: Final = (
    ("top-1", "top1", "#1f5fa8"),
    ("mean per class", "mean_per_class", "#e08a3c"),
    ("top-5", "top5", "#a9c4e0"),
)
_CELLS_WITH_NUMBERS: Final = 15  # most classes whose cells have room for a number
_NAME_CHARS: Final = 28


def write_plot(path: Path, evaluation: Evaluation) -> None:
    """Draw the comparison of template sets and, for up to a hundred classes, the first set's confusion matrix."""
    from matplotlib.figure import Figure

    with_matrix = len(evaluation.classes) <= MOST_CLASSES
    bars_height = 1.6 + 0.7 * len(evaluation.figures)  # inches, as all sizes here
    side = max(_WIDTH, 0.16 * len(evaluation.classes) + 2.5) if with_matrix else 0
    figure = Figure(figsize=(max(_WIDTH, side), bars_height + 0.9 * side), dpi=_DPI, layout="constrained")
    figure.suptitle(
        _literal(f"{evaluation.manifest.name}: {evaluation.images:,} images, {len(evaluation.classes):,} classes")
    )
    if with_matrix:
        grid = figure.add_gridspec(2, 1, height_ratios=(bars_height, 0.9 * side))
        above = figure.add_subfigure(grid[0])
        title, found = next(iter(evaluation.figures.items()))
        _draw_matrix(figure.add_subfigure(grid[1]).subplots(), found, evaluation.classes, title)
    else:
        above = figure.add_subfigure(figure.add_gridspec(1, 1)[0])
    _draw_bars(above.subplots(), evaluation)
    above.legend(loc="outside lower center", ncols=len(_MEASURES), frameon=False, fontsize=8)
    with warnings.catch_warnings(), replacing(path) as partial:
        # A script that the font lacks is drawn as boxes; the warning would not help.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(partial, format="png")


def _draw_bars(axes: "Axes", evaluation: Evaluation) -> None:
    titles = list(evaluation.figures)
    height = 0.8 / len(_MEASURES)
    for number, (label, measure, colour) in enumerate(_MEASURES):
        values = [100 * float(getattr(found, measure)) for found in evaluation.figures.values()]
        places = np.arange(len(titles)) + (number - 1) * height
        bars = axes.barh(places, values, height, label=label, color=colour)
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
    counts = [len(evaluation.template_sets[title]) for title in titles]
    axes.set_yticks(
        np.arange(len(titles)),
        [f"{_short(title)} ({count})" for title, count in zip(titles, counts, strict=True)],
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xlabel("accuracy, %")
    axes.set_title("template sets (number of templates)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_matrix(axes: "Axes", found: Figures, classes: tuple[str, ...], title: str) -> None:
    shares = confusion_matrix(found)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = 8 if len(classes) <= 40 else 6
    names = [_short(name) for name in classes]
    axes.set_xticks(np.arange(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(np.arange(len(names)), names, fontsize=size)
    axes.set_xlabel("taken for")
    axes.set_ylabel("true")
    axes.set_title(f"confusions, % of each class, set {_short(title)}", fontsize=10)
    if len(classes) <= _CELLS_WITH_NUMBERS:
        for (row, column), share in np.ndenumerate(shares):
            if share > 0:
                colour = "white" if share > 0.5 else "black"
                axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    else:
        axes.figure.colorbar(image, ax=axes, shrink=0.7, format=lambda share, _: f"{100 * share:.0f}%")


def _short(name: str) -> str:
    return _literal(name if len(name) <= _NAME_CHARS else name[: _NAME_CHARS - 1] + "…")


def _literal(text: str) -> str:
    """Escape dollar signs, which matplotlib reads as mathematics."""
    return text.replace("$", r"\$")
