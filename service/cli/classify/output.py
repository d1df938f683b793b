"""Outputs of `anyclass classify`: a table for people, CSV, JSON lines, or Parquet."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, Protocol, get_args

from rich.console import Console, RenderableType

from service.api.json_writer import answer_json
from service.cli.classify.outcomes import ImageOutcome
from service.cli.classify.rows import COLUMNS, rows
from service.cli.console.progress import ProgressDisplay, plain
from service.cli.console.rendering import heading, name_width, predictions_row, predictions_table
from service.cli.inputs import InputError
from service.cli.options import Format

FEW_IMAGES: Final = 20
"""Up to this number, each image has a table; beyond it, a line."""
_FILE_WIDTH: Final = 100

_BY_SUFFIX: Final[Mapping[str, Format]] = {
    "": "table",
    ".txt": "table",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}


class Output(Protocol):
    """Writes results one after the other. Both methods may raise `OSError`."""

    def write(self, outcome: ImageOutcome) -> None:
        """Write the outcome of one image."""
        ...

    def close(self) -> None:
        """Complete the output."""
        ...


def format_for(output: Path | None) -> Format:
    """Return the format by the suffix of a file name; a table without a suffix.

    Raises `InputError` for a suffix that names no format: a table of bars does not belong in a ``.xlsx`` or ``.tsv``.
    """
    suffix = output.suffix.lower() if output is not None else ""
    if suffix not in _BY_SUFFIX:
        raise InputError(
            f"{output}: the end of the name says no format; use {', '.join(filter(None, _BY_SUFFIX))}, "
            f"or give --format {'|'.join(get_args(Format))}"
        )
    return _BY_SUFFIX[suffix]


class TextFile:
    """Writes text to a file, which the first write opens, or to the standard output."""

    def __init__(self, display: ProgressDisplay, output: Path | None) -> None:
        self._display = display
        self._output = output
        self._file: IO[str] | None = None

    def write(self, text: str) -> None:
        """Write text. Raises `OSError`."""
        if self._output is None:
            self._display.write(text)
            return
        if self._file is None:
            self._file = self._output.open("w", encoding="utf-8", newline="")
        self._file.write(text)

    def close(self) -> None:
        """Close the file. Raises `OSError`."""
        if self._file is not None:
            self._file.close()


class _TextOutput:
    def __init__(self, text: TextFile) -> None:
        self._text = text

    def close(self) -> None:
        """See `Output`."""
        self._text.close()


class JsonLinesOutput(_TextOutput):
    """Writes a line of JSON for each image."""

    def write(self, outcome: ImageOutcome) -> None:
        """See `Output`."""
        content = {"error": outcome.problem} if outcome.answer is None else answer_json(outcome.answer)
        # ASCII: no terminal or pipe can garble it.
        self._text.write(json.dumps({"image": outcome.image, **content}) + "\n")


class CsvOutput(_TextOutput):
    """Writes CSV (RFC 4180, but with LF line ends) with a header."""

    def __init__(self, text: TextFile) -> None:
        super().__init__(text)
        self._header: Sequence[Sequence[Any]] = [COLUMNS]

    def write(self, outcome: ImageOutcome) -> None:
        """See `Output`."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows(self._header)
        writer.writerows(rows(outcome))
        self._header = ()
        self._text.write(buffer.getvalue())


class TableOutput(_TextOutput):
    """Writes a table for each of a few images, a line for each of many."""

    def __init__(
        self, text: TextFile, images: Sequence[str], *, cosine: bool, show: Callable[..., None], console: Console
    ) -> None:
        super().__init__(text)
        self._cosine = cosine
        self._show = show
        self._console = console
        self._name_width = name_width(images, console) if len(images) > FEW_IMAGES else None
        self._shown = 0

    def write(self, outcome: ImageOutcome) -> None:
        """See `Output`."""
        if outcome.answer is None:
            return  # the error is on standard error
        if self._name_width is not None:
            self._show(
                predictions_row(
                    outcome.image, outcome.answer, self._name_width, cosine=self._cosine, console=self._console
                )
            )
            return
        if self._shown:
            self._text.write("\n")
        self._shown += 1
        table = predictions_table(outcome.answer, cosine=self._cosine, console=self._console)
        self._show(heading(outcome.image, outcome.answer), table)


def open_output(
    chosen: Format, output: Path | None, display: ProgressDisplay, images: Sequence[str], *, cosine: bool
) -> Output:
    """Return the output for a format. Raises `InputError` if a package that it needs is not installed."""
    if chosen == "parquet":
        from service.cli.classify.parquet import ParquetOutput

        return ParquetOutput(output)
    text = TextFile(display, output)
    if chosen == "jsonl":
        return JsonLinesOutput(text)
    if chosen == "csv":
        return CsvOutput(text)
    if output is None:
        return TableOutput(text, images, cosine=cosine, show=display.render, console=display.out)
    console = Console(file=io.StringIO(), width=_FILE_WIDTH, highlight=False, no_color=True, force_terminal=False)

    def show(*parts: RenderableType) -> None:
        text.write(plain(console, parts))

    return TableOutput(text, images, cosine=cosine, show=show, console=console)
