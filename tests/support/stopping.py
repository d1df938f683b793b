"""A driver that stops a run after some tasks; run as a program, it kills the run there, as ``kill -9`` does."""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from model_export.curation.recipe import read_recipe
from model_export.curation.recipe_stages import curation_of
from model_export.curation.run import curate
from model_export.drivers.driver import Driver
from model_export.drivers.local import LocalDriver
from tests.support.curating import quiet

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class StoppedError(Exception):
    """The run was stopped."""


def stop() -> None:
    """Stop by an error."""
    raise StoppedError


def kill() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Stopping(LocalDriver):
    """Runs tasks in this process, and stops the run when one more than some is done."""

    tasks: int = 0
    stop: Callable[[], None] = stop
    done: list[None] = field(default_factory=list)

    def run(
        self,
        function: Callable[[_Task], _Result],
        tasks: Sequence[_Task],
        *,
        name: Callable[[_Task], str] = str,
        threads: bool = False,
    ) -> Iterator[_Result]:
        """Yield results; see `Driver`."""
        for result in super().run(function, tasks, name=name, threads=threads):
            if len(self.done) == self.tasks:
                self.stop()
            self.done.append(None)
            yield result


def run_file(recipe: Path, out: Path, driver: Driver) -> None:
    """Run a recipe."""
    with quiet() as progress:
        curate(curation_of(read_recipe(recipe), out, driver, progress), progress)


if __name__ == "__main__":
    run_file(Path(sys.argv[1]), Path(sys.argv[2]), Stopping(tasks=int(sys.argv[3]), stop=kill))
