"""The terminal while a command runs: results, errors, and beneath them a bar that says how far it is."""

import sys
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import Final, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from service.cli.console.rendering import printable

_BAR_CHARS: Final = 30


class Screen:
    """Standard output and standard error, and a bar where somebody can see it. Use as a context manager.

    The bar is drawn on a terminal only. Where the results go to the same terminal they are printed above it.
    """

    def __init__(self, *, bar: bool = True, results: bool = True, noun: str = "") -> None:
        """`bar`: whether to show one at all; `results`: whether any go to standard output; `noun`: what is counted."""
        self.out = Console(highlight=False)
        self._progress: Progress | None = None
        self._shares_out = results and sys.stdout.isatty()
        if bar and (self._shares_out or sys.stderr.isatty()):
            console = self.out if self._shares_out else Console(stderr=True, highlight=False)
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(_BAR_CHARS),
                _Count(),
                _Rate(noun),
                _Left(),
                _Failed(),
                console=console,
                transient=True,
                # What is printed goes through this class, so that a redirected stream stays one. On a terminal what
                # others say to standard error is put above the bar.
                redirect_stdout=False,
                redirect_stderr=sys.stderr.isatty(),
            )
            self._task = self._progress.add_task("", total=None, failed=0)

    @property
    def has_bar(self) -> bool:
        """Whether somebody sees how far it is."""
        return self._progress is not None

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def write(self, text: str) -> None:
        """Print lines of results, each with its line end."""
        if self._progress is not None and self._shares_out:
            self.out.out(text, end="")
        else:
            sys.stdout.write(text)
            sys.stdout.flush()

    def show(self, *parts: RenderableType) -> None:
        """Print what is not mere text; without the spaces at the ends of lines where it goes to no terminal."""
        if self.out.is_terminal:
            for part in parts:
                self.out.print(part)
            return
        self.write(plain(self.out, parts))

    def error(self, text: str) -> None:
        """Print one line to standard error."""
        line = printable(text) + "\n"
        if self._progress is not None and sys.stderr.isatty():
            self._progress.console.out(line, end="")
        else:
            sys.stderr.write(line)

    def stage(self, description: str, *, done: float = 0, total: float | None = None, failed: int = 0) -> None:
        """What is being done, and how far it is; without a total the bar only shows that something happens."""
        if self._progress is not None:
            self._progress.update(self._task, description=description, completed=done, total=total, failed=failed)


def plain(console: Console, parts: Sequence[RenderableType]) -> str:
    """What `console` would print, without the spaces at the ends of lines: they are in the way in a pipe or a file."""
    with console.capture() as capture:
        for part in parts:
            console.print(part, crop=False)
    return "".join(line.rstrip() + "\n" for line in capture.get().splitlines())


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        """How many of how many."""
        return Text("" if task.total is None else f"{task.completed:,.0f}/{task.total:,.0f}", "progress.download")


class _Rate(ProgressColumn):
    def __init__(self, noun: str) -> None:
        super().__init__()
        self._noun = noun

    def render(self, task: Task) -> Text:
        """How many a second."""
        speed = task.finished_speed or task.speed
        if not speed or task.total is None:
            return Text("")
        return Text(f"{speed:,.0f} {self._noun}/s" if speed >= 10 else f"{speed:.1f} {self._noun}/s")  # noqa: PLR2004


class _Left(ProgressColumn):
    max_refresh = 0.5  # so that the digits can be read

    def render(self, task: Task) -> Text:
        """How long it will take."""
        if task.total is None or task.time_remaining is None:
            return Text("")
        return Text(f"{timedelta(seconds=round(task.time_remaining))} left", "progress.remaining")


class _Failed(ProgressColumn):
    def render(self, task: Task) -> Text:
        """How many failed, where any did."""
        failed = task.fields["failed"]
        return Text(f"{failed:,} failed" if failed else "", "red")
