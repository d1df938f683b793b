"""Rendering for people: tables of predictions, fields, and the welcome of `anyclass serve`."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.cells import cell_len
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from service.classification.types import Classification

_BAR_CHARS: Final = 24
_MIN_BAR_CHARS: Final = 8
_SCORE_CHARS: Final = 8
_MIN_NAME_CHARS: Final = 20
_ROW_LABELS: Final = 3
_EIGHTHS: Final = " ▏▎▍▌▋▊▉"

EXAMPLE_LABELS: Final = '["cat","cup","rocket","motorcycle"]'
_REAL_MODEL: Final = "make run MODEL=openai/clip-vit-base-patch32 (605 MB, about 4 minutes once)"
DEMO_NAME: Final = "demo"
_README_EXAMPLE: Final = "rocket.jpg"
_EXAMPLE_SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".webp")


def printable(text: str) -> str:
    """Replace characters that would control a terminal."""
    return "".join(character if character.isprintable() else "�" for character in text)


def heading(name: str, classification: Classification) -> Text:
    """Return the line above an image's predictions."""
    return Text.assemble((printable(name), "bold"), ("  " + printable(classification.model), "dim"), overflow="fold")


def predictions_table(classification: Classification, *, cosine: bool, console: Console) -> Table:
    """Return one image's predictions: label, score and bar, best first."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    bar_chars = max(_MIN_BAR_CHARS, min(_BAR_CHARS, console.width // 3))
    table.add_column(overflow="fold", max_width=max(10, console.width - bar_chars - _SCORE_CHARS - 6))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, width=bar_chars)
    blocks = (console.encoding or "").lower().startswith("utf")
    for place, prediction in enumerate(classification.predictions):
        style = "bold green" if place == 0 else ""
        score = f"{prediction.score:.4f}" if cosine else f"{prediction.score:.1%}"
        length = bar(prediction.score, bar_chars, blocks=blocks)
        table.add_row(Text(printable(prediction.label), style), Text(score, style), Text(length, style or "cyan"))
    if not classification.predictions:
        table.add_row(Text("no label reaches the minimum score", "dim"), "", "")
    return table


def name_width(names: Sequence[str], console: Console) -> int:
    """Return the column width for names in `predictions_row`: the longest name, within two fifths of the console."""
    return min(max(map(cell_len, names), default=0), max(_MIN_NAME_CHARS, console.width * 2 // 5))


def predictions_row(name: str, classification: Classification, width: int, *, cosine: bool, console: Console) -> Group:
    """Return one image's best predictions in a line, the name in `width` columns; only a terminal cuts it."""
    shown = printable(name)
    if console.is_terminal and cell_len(shown) > width:
        # The end of a path tells more than its beginning.
        while cell_len(shown) > width - 1:
            shown = shown[1:]
        shown = "…" + shown
    row = Text(shown + " " * (width - cell_len(shown)), no_wrap=True, overflow="ellipsis")
    for place, prediction in enumerate(classification.predictions[:_ROW_LABELS]):
        score = f"{prediction.score:.4f}" if cosine else f"{prediction.score:.1%}"
        row.append(f"  {score:>6} {printable(prediction.label)}", "bold green" if place == 0 else "")
    if not classification.predictions:
        row.append("  no label reaches the minimum score", "dim")
    if not console.is_terminal:
        row.overflow = "ignore"
    # A bare Text would be wrapped: rich ignores its no_wrap when it prints several renderables.
    return Group(row)


def bar(score: float, width: int, *, blocks: bool) -> str:
    """Return a bar of up to `width` characters for a score of 0 to 1; empty below 0."""
    filled = max(0.0, min(1.0, score)) * width
    if not blocks:
        return "#" * round(filled)
    eighths = round(filled * 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def example_photo(folders: Sequence[Path]) -> Path | None:
    """Return the README's photo, else the first by name, from the first of `folders` with photos."""
    for folder in folders:
        photos = [path for path in folder.glob("*") if path.suffix.lower() in _EXAMPLE_SUFFIXES]
        if photos:
            return min(photos, key=lambda path: (path.name != _README_EXAMPLE, path))
    return None


def welcome(url: str, *, version: str, model: str, seconds: float, photo: Path | None, keyed: bool) -> str:
    """Return the greeting of a started service: a request to try, and its pages. `keyed`: it needs an API key."""
    image = shown_path(photo) if photo is not None else "photo.jpg"
    toy = f"  model    a toy for a first try; a real one: {_REAL_MODEL}\n" if model == DEMO_NAME else ""
    key = ' -H "Authorization: Bearer $KEY"' if keyed else ""
    return (
        f"\nanyclass {version} serves the model '{model}', ready in {seconds:.1f} s.\n\n"
        f"  try      curl -s{key} -F image=@{image} -F 'labels={EXAMPLE_LABELS}' {url}/v1/classify\n"
        f"{toy}"
        f"  docs     {url}/docs\n"
        f"  metrics  {url}/metrics\n\n"
        "Ctrl-C stops it.\n"
    )


def shown_path(path: Path) -> str:
    """Return `path` relative to the working directory if it is below it, quoted for a shell."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def print_fields(fields: Mapping[str, str]) -> None:
    """Print names and values, one pair a line; further lines of a value are indented."""
    width = max(map(cell_len, fields), default=0)
    for name, value in fields.items():
        first, *others = value.splitlines() or [""]
        sys.stdout.write(f"{printable(name):<{width}}  {printable(first)}\n")
        for other in others:
            sys.stdout.write(f"{'':<{width}}  {printable(other)}\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print columns, those in `right` flush right. Nothing is cut: scripts can split each line."""
    lines = [list(header), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = []
        for column, cell in enumerate(line):
            space = " " * (widths[column] - cell_len(cell))
            cells.append(space + cell if column in right else cell + space)
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def local_time(seconds: float) -> str:
    """Format seconds since 1970 in this machine's time zone."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(sep=" ", timespec="seconds")
