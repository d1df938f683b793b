"""Interface of a driver: it runs a function on many tasks, and yields results as they come.

`LocalDriver` does so in processes of this machine. What runs on one driver runs on every other one if it keeps to this:

* Function, tasks and results can be pickled. The function is sent to a process once, and called there with one task
  after another: what it loads once, such as a model, may stay in its attributes.
* A task whose process is killed runs again, so running it twice does no harm: a shard is written beside its place,
  synced and renamed (`model_export.curation.making.ShardMaker`).
* A `ModelExportError` of the function ends the run, and comes out of `Driver.run` as it is.
* Files and folders that tasks name are on a disk that every node of a cluster sees under the same path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


class Driver(Protocol):
    """Runs tasks."""

    def run(
        self,
        function: Callable[[_Task], _Result],
        tasks: Sequence[_Task],
        *,
        name: Callable[[_Task], str] = str,
        threads: bool = False,
    ) -> Iterator[_Result]:
        """Yield the result of each task as it comes, in any order.

        Args:
            function: pure, but for files that it commits; can be pickled.
            tasks: can be pickled.
            name: of a task, for messages.
            threads: the function lets other threads run for most of its time, as hashing and reading do; so processes
                need not be started for it.

        Raises:
            ModelExportError: a task raised it; other tasks that run are abandoned.
            DriverError: the process of a task was killed several times.
        """

    def check_folder(self, folder: Path) -> None:
        """Check that every node sees this folder of this machine.

        Raises:
            DriverError: one does not.
        """
