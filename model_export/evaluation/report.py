"""Show an evaluation: tables and a progress bar for people, JSON for programs."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from model_export.errors import DataError
from model_export.evaluation.data.samples import printable
from model_export.evaluation.figures import Figures
from model_export.evaluation.run import Evaluation
from model_export.files import replacing

_BROKEN_SHOWN: Final = 20
_CONFUSIONS_KEPT: Final = 1_000


class Bars(Progress):
    """Shows a progress bar with a rate for each part of an evaluation; on a terminal only, and gone at the end."""

    def __init__(self, console: Console) -> None:
        super().__init__(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def begin(self, what: str, total: int) -> Callable[[int], None]:
        """Start a bar; return the function that advances it."""
        task = self.add_task(what, total=total)
        return lambda count: self.advance(task, count)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")


def show(console: Console, evaluation: Evaluation, *, rows: int) -> None:
    """Print the comparison of template sets, and up to ``rows`` classes and confusions of the first set."""
    manifest = evaluation.manifest
    console.print(
        Text.assemble(
            (manifest.name, "bold"),
            f" {manifest.revision[:12]} ({manifest.precision}, {evaluation.provider}): {evaluation.images:,} images, "
            f"{len(evaluation.classes):,} classes, {evaluation.images / max(evaluation.seconds, 1e-9):,.0f} images/s",
        ),
        soft_wrap=True,
    )
    for remark in evaluation.remarks:
        console.print(Text(f"note: {remark}", "yellow"), soft_wrap=True)
    console.print(_comparison(evaluation))
    title, found = next(iter(evaluation.figures.items()))
    measured = int(np.count_nonzero(found.class_images))
    console.print(_heading(f"classes, weakest first, set {title!r}", rows, measured), soft_wrap=True)
    console.print(_weakest(found, evaluation.classes, rows))
    if pairs := len(found.confusions):
        console.print(_heading(f"confusions, most frequent first, set {title!r}", rows, pairs), soft_wrap=True)
        console.print(_confused(found, evaluation.classes, rows))
    if count := evaluation.broken_count:
        said = "1 image could not be read and is" if count == 1 else f"{count:,} images could not be read and are"
        console.print(Text(f"{said} not counted:", "red"), soft_wrap=True)
        for where, reason in evaluation.broken[:_BROKEN_SHOWN]:
            console.print(Text(f"  {where}: {reason}"), soft_wrap=True)
        if count > _BROKEN_SHOWN:
            console.print(f"  and {count - _BROKEN_SHOWN:,} more", highlight=False)


def check_output(path: Path) -> None:
    """Check before the long work that a file can be written.

    Raises:
        DataError: it is a folder, or its own folder is missing or not writable.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name a file")
    if not os.access(path.parent, os.W_OK):
        raise DataError(f"{path}: cannot be written; its folder is missing or not writable")


def write_json(path: Path, evaluation: Evaluation) -> None:
    """Write all figures; shares are 0 to 1."""
    with replacing(path) as partial:
        partial.write_text(
            json.dumps(_fields(evaluation), indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8"
        )


def _comparison(evaluation: Evaluation) -> Table:
    table = Table("set", *_numbers("templates", "top-1", "top-5", "mean per class"))
    best = max(found.top1 for found in evaluation.figures.values())
    for title, found in evaluation.figures.items():
        style = "bold green" if found.top1 == best and len(evaluation.figures) > 1 else ""
        table.add_row(
            Text(printable(title)),
            f"{len(evaluation.template_sets[title]):,}",
            f"{found.top1:.2%}",
            f"{found.top5:.2%}",
            f"{found.mean_per_class:.2%}",
            style=style,
        )
    return table


def _weakest(found: Figures, classes: tuple[str, ...], rows: int) -> Table:
    order = [index for index in np.argsort(found.class_top1, kind="stable").tolist() if found.class_images[index]]
    table = Table(Column("class", overflow="fold"), *_numbers("images", "top-1", "top-5"))
    for index in order[:rows]:
        table.add_row(
            Text(classes[index]),
            f"{found.class_images[index]:,}",
            f"{found.class_top1[index]:.1%}",
            f"{found.class_top5[index]:.1%}",
        )
    return table


def _confused(found: Figures, classes: tuple[str, ...], rows: int) -> Table:
    names = (Column(heading, overflow="fold") for heading in ("true", "taken for"))
    table = Table(*names, *_numbers("images", "share of the class"))
    for true, taken_for, images, share in found.confusions[:rows]:
        table.add_row(Text(classes[true]), Text(classes[taken_for]), f"{images:,}", f"{share:.1%}")
    return table


def _numbers(*headings: str) -> list[Column]:
    return [Column(heading, justify="right") for heading in headings]


def _heading(what: str, rows: int, total: int) -> Text:
    return Text(f"\n{what}" if total <= rows else f"\n{what} ({rows} of {total:,})", "italic")


def _fields(evaluation: Evaluation) -> dict[str, Any]:
    request, manifest = evaluation.request, evaluation.manifest
    return {
        "bundle": {"name": manifest.name, "revision": manifest.revision, "precision": manifest.precision},
        "provider": evaluation.provider,
        "data": list(request.data),
        "every": request.every,
        "limit": request.limit,
        "images": evaluation.images,
        "images_per_second": round(evaluation.images / max(evaluation.seconds, 1e-9), 1),
        "classes": list(evaluation.classes),
        "remarks": list(evaluation.remarks),
        "template_sets": {
            title: {"templates": list(evaluation.template_sets[title]), **_figures(found, evaluation.classes)}
            for title, found in evaluation.figures.items()
        },
        "broken": {
            "count": evaluation.broken_count,
            "first": [{"image": where, "reason": reason} for where, reason in evaluation.broken],
        },
    }


def _figures(found: Figures, classes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "top1": found.top1,
        "top5": found.top5,
        "mean_per_class": found.mean_per_class,
        "per_class": [
            {"class": name, "images": int(images), "top1": _share(top1), "top5": _share(top5)}
            for name, images, top1, top5 in zip(
                classes, found.class_images, found.class_top1, found.class_top5, strict=True
            )
        ],
        "confusions": [
            {"true": classes[true], "taken_for": classes[taken_for], "images": images, "share": share}
            for true, taken_for, images, share in found.confusions[:_CONFUSIONS_KEPT]
        ],
    }


def _share(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
