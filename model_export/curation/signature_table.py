"""All signatures of a data set, as arrays: those of fixed size in memory, the coefficients on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from model_export.curation.coins import Numbers
from model_export.curation.signatures import EXACT, EXACT_BYTES, NEAR, NEAR_BYTES, PIXELS
from model_export.curation.stage import ID
from model_export.curation.views import Coded, Rows

_ROWS: Final = 65_536


@dataclass(frozen=True, eq=False)
class SignatureTable:
    """Signatures in the order of preference: the most pixels first, of several the lowest key; broken ones last.

    Attributes:
        keys: of the ids, uint64 ``[n]``.
        pixels: 0 for a broken picture, int64 ``[n]``.
        exact: two numbers of each digest, uint64 ``[n, 2]``; zeros for a broken picture.
        near: coefficients, int8 ``[n, NEAR_BYTES]``, in a file; zeros for a broken picture.
        places: row of each signature in the files as they were read, int64 ``[n]``.
    """

    keys: Numbers
    pixels: Rows
    exact: Numbers
    near: Coded
    places: Rows

    @classmethod
    def read(cls, shards: Sequence[Path], key: Callable[[pa.ChunkedArray], Numbers], scratch: Path) -> SignatureTable:
        """Read shards that `Sign` made.

        Args:
            shards: Parquet files.
            key: from ids to keys.
            scratch: folder for the coefficients, which must stay while they are used.
        """
        total = sum(pq.read_metadata(shard).num_rows for shard in shards)
        keys, pixels = np.zeros(total, np.uint64), np.zeros(total, np.int64)
        exact = np.zeros((total, EXACT_BYTES // 8), np.uint64)
        near = _array(scratch / "near-read", total)
        start = 0
        for shard in shards:
            with pq.ParquetFile(shard, pre_buffer=False, buffer_size=2**20) as file:
                for batch in file.iter_batches(_ROWS):
                    table, rows = pa.Table.from_batches([batch]), slice(start, start + batch.num_rows)
                    keys[rows] = key(table[ID])
                    pixels[rows] = table[PIXELS].fill_null(0).to_numpy()
                    exact[rows] = _bytes(table[EXACT], EXACT_BYTES).view("<u8")
                    near[rows] = _bytes(table[NEAR], NEAR_BYTES).view(np.int8)
                    start += batch.num_rows
        order = np.lexsort((keys, -pixels))
        in_order = _taken(near, order, scratch / "near")
        (scratch / "near-read").unlink(missing_ok=True)
        return cls(keys[order], pixels[order], exact[order], in_order, order)

    def part(self, rows: Rows, scratch: Path) -> Coded:
        """Return the coefficients of some rows, in a file of a folder."""
        return _taken(self.near, rows, scratch / "near-part")


def _taken(near: Coded, rows: Rows, path: Path) -> Coded:
    found = _array(path, rows.size)
    for start in range(0, rows.size, _ROWS):
        found[start : start + _ROWS] = near[rows[start : start + _ROWS]]
    return found


def _array(path: Path, rows: int) -> Coded:
    """Make a file of coefficients; an array in memory if it has no rows, since a file cannot be mapped then."""
    if not rows:
        return np.zeros((0, NEAR_BYTES), np.int8)
    return np.memmap(path, np.int8, "w+", shape=(rows, NEAR_BYTES))


def _bytes(column: pa.ChunkedArray, size: int) -> npt.NDArray[np.uint8]:
    """Return binary values of one size as rows of bytes, with zeros for nulls."""
    values = column.fill_null(bytes(size)).combine_chunks()
    joined = b"".join(values.to_pylist())
    return np.frombuffer(joined, np.uint8).reshape(-1, size)
