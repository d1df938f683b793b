"""The rows that training holds out, and that an evaluation can pick again."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def is_held_out(rows: npt.NDArray[np.int64], every: int) -> npt.NDArray[np.bool_]:
    """Return which rows of a file are held out: the last of each ``every`` rows, or none if ``every`` is 0."""
    if every == 0:
        return np.zeros(rows.shape, dtype=np.bool_)
    return np.equal(rows % every, every - 1)
