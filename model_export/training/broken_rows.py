"""The budget of broken rows, and their list in a run's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from model_export.data.tally import BrokenRow, Tally
from model_export.errors import DataError

LIST = "broken.jsonl"
_FEWEST_ROWS = 10_000
"""Rows that a share is taken of at least: the first broken row of a run would be too large a share of those before."""
_SHOWN = 5


class BrokenRows:
    """Lists each broken row once, and ends a run when they exceed a share of the rows."""

    def __init__(self, run: Path, *, share: float, train_rows: int, say: Callable[[str], None]) -> None:
        """Read the list of a resumed run.

        Args:
            run: the folder that holds the list.
            share: largest share of broken rows among those that were read.
            train_rows: rows of an epoch.
            say: prints a line.
        """
        self._path = run / LIST
        self._share = share
        self._fewest = min(_FEWEST_ROWS, train_rows)
        self._say = say
        lines = self._path.read_text("utf-8").splitlines() if self._path.exists() else []
        self._listed = {row for row in map(_row_of, lines) if row is not None}

    def note(self, broken: Sequence[BrokenRow], tally: Tally) -> None:
        """List a batch's broken rows.

        Args:
            broken: the rows.
            tally: of the whole run, this batch included.

        Raises:
            DataError: the run has too many of them; the message names the last.
        """
        new = {each.row: each.message for each in broken if each.row not in self._listed}
        if new:
            # The newline comes first, so that a line that a kill cut short harms no other.
            lines = ("\n" + json.dumps({"row": row, "problem": message}) for row, message in new.items())
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
            for message in list(new.values())[: max(0, _SHOWN - len(self._listed))]:
                self._say(f"passed over: {message}")
            if len(self._listed) < _SHOWN <= len(self._listed) + len(new):
                self._say(f"further broken rows are listed in {self._path} only")
            self._listed.update(new)
        if broken and tally.broken > self._share * max(self._fewest, tally.rows):
            raise DataError(
                f"{broken[-1].message}; {tally.broken:,} of {tally.rows:,} rows are broken, more than data.max_broken "
                f"= {self._share:g}. {self._path} lists them: mend or leave out these files, or raise max_broken and "
                "continue"
            )


def _row_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["row"])
    except (ValueError, KeyError, TypeError):
        return None  # a kill cut this line short
