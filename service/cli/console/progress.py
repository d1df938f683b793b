"""Results and errors of a running command, with a progress bar beneath them."""

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


class ProgressDisplay:
    """Writes to standard output and standard error, above a progress bar on a terminal. Use as a context manager.

    Without a terminal it draws no bar. Results that go to the same terminal are printed above the bar.
    """

    def __init__(self, *, bar: bool = True, results: bool = True, noun: str = "") -> None:
        """`bar`: draw one on a terminal; `results`: some go to standard output; `noun`: unit of the rate."""
        self.out = Console(highlight=False)
        self._progress: Progress | None = None
        self._description = ""
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
                # Standard output is written by this class alone, so a redirected one stays redirected. On a terminal,
                # rich puts what libraries write to standard error above the bar.
                redirect_stdout=False,
                redirect_stderr=sys.stderr.isatty(),
            )
            self._task = self._progress.add_task("", total=None, failed=0)

    @property
    def has_bar(self) -> bool:
        """Whether a progress bar is shown."""
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
        """Print results; each line ends with a newline."""
        if self._progress is not None and self._shares_out:
            self.out.out(text, end="")
        else:
            sys.stdout.write(text)
            sys.stdout.flush()

    def render(self, *parts: RenderableType) -> None:
        """Print rich content, without trailing spaces unless the output is a terminal."""
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

    def update(self, description: str, *, done: float = 0, total: float | None = None, failed: int = 0) -> None:
        """Show the current step and its progress; without a total the bar only pulses."""
        if self._progress is None:
            return
        new = description != self._description  # drawn at once, for a step may be over before the next drawing
        self._description = description
        self._progress.update(
            self._task, description=description, completed=done, total=total, failed=failed, refresh=new
        )


def plain(console: Console, parts: Sequence[RenderableType]) -> str:
    """Return what `console` would print, without trailing spaces, which are in the way in a pipe or a file."""
    with console.capture() as capture:
        for part in parts:
            console.print(part, crop=False)
    return "".join(line.rstrip() + "\n" for line in capture.get().splitlines())


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Return the count and the total."""
        return Text("" if task.total is None else f"{task.completed:,.0f}/{task.total:,.0f}", "progress.download")


class _Rate(ProgressColumn):
    def __init__(self, noun: str) -> None:
        super().__init__()
        self._noun = noun

    def render(self, task: Task) -> Text:
        """Return the rate per second."""
        speed = task.finished_speed or task.speed
        if not speed or task.total is None:
            return Text("")
        return Text(f"{speed:,.0f} {self._noun}/s" if speed >= 10 else f"{speed:.1f} {self._noun}/s")  # noqa: PLR2004


class _Left(ProgressColumn):
    max_refresh = 0.5  # seconds: faster digits cannot be read

    def render(self, task: Task) -> Text:
        """Return the remaining time."""
        if task.total is None or task.time_remaining is None:
            return Text("")
        return Text(f"{timedelta(seconds=round(task.time_remaining))} left", "progress.remaining")


class _Failed(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Return the number of failures, if any."""
        failed = task.fields["failed"]
        return Text(f"{failed:,} failed" if failed else "", "red")
