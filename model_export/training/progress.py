"""Report a run: a progress bar or lines, metrics as JSON lines, and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"
_MINUTE_S = 60
_HOUR_S = 3600


class Reporter:
    """Writes a step's metrics to all three outputs.

    First cuts ``metrics.jsonl`` back to the resumed step, so that it never holds a step twice.
    """

    def __init__(self, run: Path, console: Console, *, total_steps: int, first_step: int) -> None:
        self._console = console
        path = run / METRICS
        kept = []
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) < first_step]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step or None)
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=total_steps, completed=first_step, state="")
        self._total_steps = total_steps
        self._progress.start()

    def close(self) -> None:
        """Stop the bar, and close both files."""
        self._progress.stop()
        self._file.close()
        self._board.close()

    def advance(self, step: int) -> None:
        """Advance the bar to the end of ``step``."""
        self._progress.update(self._task, completed=step + 1)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of a step; show them in the bar on a terminal, else as a line."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for key, value in values.items():
            self._board.add_scalar(key, value, step)
        text = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
        self._progress.update(self._task, state=text)
        if not self._console.is_terminal:
            self._console.print(f"step {step + 1}/{self._total_steps}  {text}", highlight=False, soft_wrap=True)

    def estimate(self, steps: int, seconds: float) -> None:
        """Print the time that ``steps`` more steps take if each takes ``seconds``, as the first has."""
        self.say(
            f"about {duration(steps * seconds)} for {steps:,} more steps, if each takes {seconds:.2g} s as this one"
        )

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(message, highlight=False, soft_wrap=True)


class Silence(Reporter):
    """Reports nothing: of the ranks, only the first is heard."""

    def __init__(self) -> None:
        """Open nothing."""

    def close(self) -> None:
        """Close nothing."""

    def advance(self, step: int) -> None:
        """Show nothing."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write nothing."""

    def estimate(self, steps: int, seconds: float) -> None:
        """Print nothing."""

    def say(self, message: str) -> None:
        """Print nothing."""


def duration(seconds: float) -> str:
    """Return a time for people: ``40 s``, ``25 min``, ``3.5 h``."""
    if seconds < 2 * _MINUTE_S:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE_S:.0f} min" if seconds < 2 * _HOUR_S else f"{seconds / _HOUR_S:.1f} h"


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        # A kill cut this line short.
        return float("inf")
