"""Show the progress of a curation: a bar on a terminal, a line now and then off it."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_EVERY_S: Final = 30.0


class CurationProgress:
    """Counts finished work of one phase after another."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._what, self._total, self._done = "", 0, 0
        self._began = self._shown = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, what: str, total: int) -> None:
        """Start a phase of ``total`` files or shards."""
        self._what, self._total, self._done = what, total, 0
        self._began = time.monotonic()
        self._shown = 0.0  # the first one is shown at once
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._bar.add_task(what, total=total, note="")

    def advance(self, note: str = "") -> None:
        """Count one more, with a note such as the pairs so far."""
        self._done += 1
        if self._console.is_terminal:
            self._bar.update(self._bar.task_ids[-1], advance=1, note=note)
            return
        now = time.monotonic()
        if now - self._shown >= _EVERY_S or self._done == self._total:
            self._shown = now
            left = (now - self._began) / self._done * (self._total - self._done)
            line = f"{self._what}: {self._done:,} of {self._total:,}{note and ', '}{note}, {left:.0f} s left"
            self._console.print(line, highlight=False, soft_wrap=True, markup=False)
