"""The rows that training holds out, and that an evaluation can pick again.

Of a file's rows the last of each ``every`` is held out, so both kinds are numbered by arithmetic, without an array.
"""

from __future__ import annotations

from typing import overload

import numpy as np
import numpy.typing as npt

from model_export.data.pairs import Rows


def is_held_out(rows: Rows, every: int) -> npt.NDArray[np.bool_]:
    """Return which rows of a file are held out: the last of each ``every`` rows, or none if ``every`` is 0."""
    if every == 0:
        return np.zeros(rows.shape, dtype=np.bool_)
    return np.equal(rows % every, every - 1)


@overload
def trained_before(row: int, every: int) -> int: ...
@overload
def trained_before(row: Rows, every: int) -> Rows: ...
def trained_before(row: int | Rows, every: int) -> int | Rows:
    """Count the rows of a file before ``row`` that are trained on."""
    return row - row // every if every else row


def trained_row(index: Rows, every: int) -> Rows:
    """Return the row of a file that is its ``index``-th to be trained on, from 0; ``every`` is not 1."""
    return index + index // (every - 1) if every else index
