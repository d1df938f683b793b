"""Measure our trainer beside open_clip's: the same weights, tars, batch, precision and threads, in turns.

Run by ``make bench-train``. Both trainers are started and take their first steps; then each is measured in its turn,
while the other is frozen. A figure is the median of the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from service.model.engine.cpus import available_cpus
from tests.bench import machine, training_data
from tests.bench.environments import Unavailable, installed
from tests.bench.places import WORK
from tests.bench.trainers import ENVIRONMENT, OURS, THEIRS, Case, Training, start_ours, start_theirs

WANTED: Final = 1.2
_BATCHES: Final = {"ViT-B-32": 32, "small": 64}
_PROCESSES: Final = (1, 2)
_FIRST_STEPS: Final = 3
"""Are not measured: loading processes start, memory is allocated."""
_FEWEST_STEPS: Final = 2


@dataclass(frozen=True)
class Turn:
    """A stretch of whole steps.

    Attributes:
        steps: their number.
        seconds: from the end of the step before them.
        cpu_s: processor time of all processes meanwhile.
    """

    steps: int
    seconds: float
    cpu_s: float


def main() -> int:
    """Measure each case, print the table, and write `build/bench/training.json`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(_BATCHES), default=list(_BATCHES))
    parser.add_argument("--processes", nargs="+", type=int, default=list(_PROCESSES))
    parser.add_argument("--threads", type=int, default=available_cpus(), help="1 on a machine with other work")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=7.0, help="of a turn, at least")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 110)
    started = time.monotonic()
    # Frozen processes must not outlive this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        ENVIRONMENT.make()
    except Unavailable as reason:
        console.print(f"open_clip cannot be installed: {reason}", markup=False)
        return 1
    found = []
    for model in options.models:
        for processes in options.processes:
            case = Case(model, _BATCHES[model], processes, options.threads)
            console.print(f"{case.name}: batch {case.batch}", highlight=False)
            try:
                turns = _measured(case, options.rounds, options.seconds)
            except Unavailable as reason:
                console.print(f"{case.name}: left out. {reason}", markup=False)
                continue
            found.append((case, turns))
            # The whole takes minutes: a run that is stopped has shown the cases before.
            console.print(sentence(case, turns), highlight=False)
    versions = installed(ENVIRONMENT.python, ["torch", "torchvision", "open-clip-torch", "webdataset", "pillow"])
    about = f"{', '.join(f'{name} {version}' for name, version in versions.items())}; bf16, {options.threads} threads"
    console.print(table(found, about=f"{about}; load {os.getloadavg()[0]:.1f}"))
    console.print(f"{(time.monotonic() - started) / 60:.1f} minutes", highlight=False)
    cases = [
        {**asdict(case), "turns": {name: list(map(asdict, turns[name])) for name in turns}} for case, turns in found
    ]
    content = {"machine": machine.describe(), "peer": versions, "cases": cases}
    (WORK / "training.json").write_text(json.dumps(content, indent=2) + "\n")
    return 0 if found else 1


def _measured(case: Case, rounds: int, seconds: float) -> dict[str, list[Turn]]:
    """Start both trainers, and measure them in turns."""
    data = WORK / "training-data"
    training_data.tars(data)
    turns: dict[str, list[Turn]] = {OURS: [], THEIRS: []}
    trainings: list[Training] = []
    try:
        for start in (start_ours, start_theirs):
            trainings.append(start(case, data))
            trainings[-1].wait(_FIRST_STEPS)
            trainings[-1].freeze()
        for _ in range(rounds):
            for training in trainings:
                turns[training.name].append(_turn(training, seconds))
    finally:
        for training in trainings:
            training.stop()
    return turns


def _turn(training: Training, seconds: float) -> Turn:
    """Resume a trainer, measure whole steps, and freeze it again. The step that was interrupted does not count."""
    first = training.steps() + 1
    training.thaw()
    began = training.wait(first)
    cpu_s = training.cpu_s()
    done, now = first, began
    while done < first + _FEWEST_STEPS or now - began < seconds:
        now = training.wait(done + 1)
        done = training.steps()
    turn = Turn(done - first, now - began, training.cpu_s() - cpu_s)
    training.freeze()
    return turn


def rate(turns: Sequence[Turn], batch: int) -> float:
    """Return pairs a second: the median of the turns."""
    return statistics.median(batch * turn.steps / turn.seconds for turn in turns)


def cpu_ms(turns: Sequence[Turn], batch: int) -> float:
    """Return milliseconds of processor time for a pair: the median of the turns."""
    return statistics.median(1e3 * turn.cpu_s / (batch * turn.steps) for turn in turns)


def ratios(ours: Sequence[Turn], theirs: Sequence[Turn]) -> list[float]:
    """Return how many times as fast as theirs our steps were, round by round."""
    return [(a.steps / a.seconds) / (b.steps / b.seconds) for a, b in zip(ours, theirs, strict=True)]


def table(found: Sequence[tuple[Case, dict[str, list[Turn]]]], *, about: str) -> Table:
    """Return the results: a row for each case."""
    shown = Table(title=f"training, pairs/s ({about})", title_justify="left", box=None)
    for head in ("model", "batch", "processes", OURS, THEIRS, "ratio", "of rounds", "CPU ms/pair", "wanted"):
        shown.add_column(head, justify="left" if head == "model" else "right", no_wrap=True)
    for case, turns in found:
        shown.add_row(*row(case, turns))
    return shown


def sentence(case: Case, turns: dict[str, list[Turn]]) -> str:
    """Return the result of a case as a line."""
    ratio = statistics.median(ratios(turns[OURS], turns[THEIRS]))
    rates = ", ".join(f"{name} {rate(turns[name], case.batch):.1f}" for name in (OURS, THEIRS))
    return f"{case.name}: {rates} pairs/s, {ratio:.2f}x"


def row(case: Case, turns: dict[str, Any]) -> list[str]:
    """Return the cells of a case."""
    ours, theirs = turns[OURS], turns[THEIRS]
    each = ratios(ours, theirs)
    ratio = statistics.median(each)
    return [
        case.model,
        str(case.batch),
        str(case.processes),
        f"{rate(ours, case.batch):.1f}",
        f"{rate(theirs, case.batch):.1f}",
        f"{ratio:.2f}x",
        f"{min(each):.2f}-{max(each):.2f}",
        f"{cpu_ms(ours, case.batch):.1f}, {cpu_ms(theirs, case.batch):.1f}",
        f">= {WANTED}x: {'yes' if ratio >= WANTED else 'no'}",
    ]


if __name__ == "__main__":
    sys.exit(main())
