"""Where the results of `anyclass classify` go: a table to read, CSV, lines of JSON, or Parquet."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final, Protocol

from rich.console import Console, RenderableType

from service.api.json_writer import answer_json
from service.cli.classify.outcomes import Outcome
from service.cli.classify.rows import COLUMNS, rows
from service.cli.console.progress import Screen, plain
from service.cli.console.rendering import heading, name_width, predictions_row, predictions_table
from service.cli.options import Format

FEW_IMAGES: Final = 20
"""Up to so many images each has a table of its own; beyond that, a line."""
_FILE_WIDTH: Final = 100


_BY_SUFFIX: Final = {
    ".csv": Format.csv,
    ".jsonl": Format.jsonl,
    ".ndjson": Format.jsonl,
    ".json": Format.jsonl,
    ".parquet": Format.parquet,
    ".pq": Format.parquet,
}


class Sink(Protocol):
    """Takes results one after the other. Both methods may raise `OSError`."""

    def write(self, outcome: Outcome) -> None:
        """Write what became of one image."""
        ...

    def close(self) -> None:
        """Finish what was written."""
        ...


def format_for(output: Path | None) -> Format:
    """The format that a file's name asks for; a table where it says nothing."""
    return _BY_SUFFIX.get(output.suffix.lower(), Format.table) if output is not None else Format.table


class Text:
    """Text for a file, which is opened when there is something to write; or for the standard output."""

    def __init__(self, screen: Screen, output: Path | None) -> None:
        self._screen = screen
        self._output = output
        self._file: IO[str] | None = None

    def write(self, text: str) -> None:
        """Write lines. Raises `OSError`."""
        if self._output is None:
            self._screen.write(text)
            return
        if self._file is None:
            self._file = self._output.open("w", encoding="utf-8", newline="")
        self._file.write(text)

    def close(self) -> None:
        """Close the file. Raises `OSError`."""
        if self._file is not None:
            self._file.close()


class LinesSink:
    """A line of JSON for each image."""

    def __init__(self, text: Text) -> None:
        self._text = text

    def write(self, outcome: Outcome) -> None:
        """See `Sink`."""
        content = {"error": outcome.error} if outcome.answer is None else answer_json(outcome.answer)
        # ASCII, so that no terminal's or pipe's encoding can spoil it.
        self._text.write(json.dumps({"image": outcome.image, **content}) + "\n")

    def close(self) -> None:
        """See `Sink`."""
        self._text.close()


class CsvSink:
    """CSV (RFC 4180, with plain line ends) with a header."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._header: Sequence[Sequence[Any]] = [COLUMNS]

    def write(self, outcome: Outcome) -> None:
        """See `Sink`."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows(self._header)
        writer.writerows(rows(outcome))
        self._header = ()
        self._text.write(buffer.getvalue())

    def close(self) -> None:
        """See `Sink`."""
        self._text.close()


class TableSink:
    """For people: a table for each of a few images, a line for each of many."""

    def __init__(
        self, text: Text, images: Sequence[str], *, cosine: bool, show: Callable[..., None], console: Console
    ) -> None:
        self._text = text
        self._cosine = cosine
        self._show = show
        self._console = console
        self._name_width = name_width(images, console) if len(images) > FEW_IMAGES else None
        self._shown = 0

    def write(self, outcome: Outcome) -> None:
        """See `Sink`."""
        if outcome.answer is None:
            return  # it is said on standard error
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

    def close(self) -> None:
        """See `Sink`."""
        self._text.close()


def open_sink(chosen: Format, output: Path | None, screen: Screen, images: Sequence[str], *, cosine: bool) -> Sink:
    """The sink of a format. Raises `InputError` where what it needs is not installed."""
    if chosen is Format.parquet:
        from service.cli.classify.parquet import ParquetSink

        return ParquetSink(output)
    text = Text(screen, output)
    if chosen is Format.jsonl:
        return LinesSink(text)
    if chosen is Format.csv:
        return CsvSink(text)
    if output is None:
        return TableSink(text, images, cosine=cosine, show=screen.show, console=screen.out)
    console = Console(file=io.StringIO(), width=_FILE_WIDTH, highlight=False, no_color=True, force_terminal=False)

    def show(*parts: RenderableType) -> None:
        text.write(plain(console, parts))

    return TableSink(text, images, cosine=cosine, show=show, console=console)
