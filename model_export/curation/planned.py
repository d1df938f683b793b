"""Interface of a planned stage: a stage that needs a look at all rows before it can judge one.

Balance is one: whether a pair stays depends on the number of pairs of each query. The rows before it are written as
shards, passed over, and a `Stage` follows, which then judges each row by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from model_export.curation.pieces import InputColumns, InputFile
from model_export.curation.progress import CurationProgress
from model_export.curation.stage import Stage
from model_export.drivers.driver import Driver


class Rows(NamedTuple):
    """Rows before a planned stage: files, in the order of the plan, and the names of their columns."""

    files: Sequence[InputFile]
    columns: InputColumns


class PlannedStage(Protocol):
    """A stage to be planned. The same rows give the same stage, in any order and any number of files."""

    @property
    def name(self) -> str:
        """Return the name of the stage that follows."""

    @property
    def digest(self) -> str:
        """Return a hash of everything but the rows that decides the stage (`stage.digest_of`)."""

    def check(self, names: Sequence[str], driver: Driver, progress: CurationProgress) -> None:
        """Check files that the user has given for this stage, before anything is written.

        Args:
            names: of the data.
            driver: reads them.
            progress: of the reading.

        Raises:
            CurationError: a file does not fit.
        """

    def plan(self, rows: Rows, folder: Path, driver: Driver, progress: CurationProgress) -> Stage:
        """Pass over the rows, and return the stage.

        Args:
            rows: before the stage.
            folder: for files that spare work after a kill; it exists, and stays.
            driver: runs the passes.
            progress: of the passes.

        Raises:
            CurationError: the rows do not fit the stage.
            DataError: they cannot be read.
        """
