"""Counts of rows that were not used as they are."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple


class BrokenRow(NamedTuple):
    """A row that could not be read: its global number, and a message that names file and row."""

    row: int
    message: str


@dataclass(frozen=True)
class Tally:
    """Counts over one or more batches; they add up.

    Attributes:
        pairs: pairs that were loaded.
        truncated: pairs among them whose caption was cut to the context.
        skipped: rows without a usable text, each replaced by another row.
        broken: rows that could not be read, each replaced likewise.
    """

    pairs: int = 0
    truncated: int = 0
    skipped: int = 0
    broken: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def rows(self) -> int:
        """Return the number of rows that were read."""
        return self.pairs + self.skipped + self.broken

    def shares(self) -> dict[str, float]:
        """Return the share of pairs that were truncated, and of rows that were skipped and broken."""
        return {
            "truncated": self.truncated / max(1, self.pairs),
            "skipped": self.skipped / max(1, self.rows),
            "broken": self.broken / max(1, self.rows),
        }
