"""The removal of copies as a planned stage of a recipe: sign the pictures of the rows before it, then decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_export.curation.dedup import Dedup, DedupSettings
from model_export.curation.deduplicating import Pictures, plan_dedup
from model_export.curation.planned import Rows
from model_export.curation.progress import CurationProgress
from model_export.curation.stage import digest_of
from model_export.drivers.driver import Driver

_VERSION: Final = 2
_SIGNATURES: Final = "signatures"


@dataclass(frozen=True)
class PlannedDedup:
    """A `Dedup` to be planned.

    Attributes:
        settings: methods, similarity and seed.
    """

    settings: DedupSettings
    name: str = "dedup"

    @property
    def digest(self) -> str:
        """Return a hash of the settings."""
        return digest_of(self.name, _VERSION, self.settings.as_json())

    def check(self, names: Sequence[str], driver: Driver, progress: CurationProgress) -> None:
        """Do nothing: the user gives no files for this stage."""

    def plan(self, rows: Rows, folder: Path, driver: Driver, progress: CurationProgress) -> Dedup:
        """Sign and decide; see `PlannedStage`."""
        pictures = Pictures([file.name for file in rows.files], rows.columns, folder / _SIGNATURES, driver)
        return plan_dedup(pictures, self.settings, progress).stage
