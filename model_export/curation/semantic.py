"""Find pictures that show the same, by the vectors of a model: pairs of a high cosine (SemDeDup, Abbas et al., 2023).

Vectors are divided into clusters by k-means, and compared within them. A vector is in the two clusters that are nearest
to it, so that few pairs are lost at their borders.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model_export.curation.coins import Numbers
from model_export.curation.dedup import keys_of
from model_export.curation.progress import CurationProgress
from model_export.curation.stage import ID
from model_export.curation.views import Floats, Rows
from model_export.data.parquet import is_string, open_parquet
from model_export.data.patterns import file_names
from model_export.errors import CurationError, DataError, first_line
from service.installation import how_to_add

_ROWS: Final = 16_384
_CLUSTER: Final = 8_192
"""Vectors of a cluster, about."""
_SAMPLE: Final = 64
"""Vectors for each cluster that k-means sees."""
_ROUNDS: Final = 10
_NEAREST: Final = 2
_BLOCK: Final = 1_024


@dataclass(frozen=True)
class VectorFiles:
    """Parquet files with the columns ``id`` and one of vectors; they may be the data themselves.

    Attributes:
        names: files, folders and ranges of names.
        column: of the vectors: lists of floats of one length.
    """

    names: Sequence[str]
    column: str = "vector"

    def check(self) -> int:
        """Return the length of the vectors.

        Raises:
            CurationError: a file has no ids or no vectors, or faiss is not installed.
            DataError: a file cannot be read.
        """
        try:
            import faiss  # noqa: F401 - only whether it is there
        except ImportError as error:
            raise CurationError(f"--method semantic needs faiss: {how_to_add('curate')}") from error
        lengths = {self._length(name) for name in file_names(self.names)}
        if len(lengths) != 1:
            raise CurationError(f"vectors of the lengths {sorted(lengths)}: name files of one model with --vectors")
        return lengths.pop()

    def _length(self, name: str) -> int:
        file = open_parquet(name, buffer_size=2**20)
        schema = file.schema_arrow
        for column, fits in ((ID, is_string), (self.column, _is_vector)):
            if column not in schema.names or not fits(schema.field(column).type):
                wanted = "strings" if column == ID else "lists of floats"
                raise CurationError(f"{name}: no column {column!r} of {wanted}; vectors are found by the ids of pairs")
        for batch in file.iter_batches(_ROWS, columns=[self.column]):
            for value in batch[0]:
                if value.is_valid:
                    return len(value)
        raise CurationError(f"{name}: column {self.column!r} has no vector")

    def read(self, keys: Numbers, seed: int, path: Path) -> tuple[Rows, Floats]:
        """Read the vectors of some pairs.

        Args:
            keys: of the pairs' ids.
            seed: of the keys.
            path: file for 4 bytes a number.

        Returns:
            Rows of ``keys`` that have a vector, ascending; and an array with a vector of unit length at each of them,
            float32 ``[keys, length]``.

        Raises:
            CurationError: no pair has a vector, or a vector is not finite or zero.
            DataError: a file cannot be read.
        """
        length = self.check()
        order = np.argsort(keys)
        all_vectors = np.memmap(path, np.float32, "w+", shape=(max(1, keys.size), length))
        has = np.zeros(keys.size, np.bool_)
        for name in file_names(self.names):
            for table in self._tables(name):
                found = keys_of(table[ID], seed)
                at = order[np.minimum(np.searchsorted(keys, found, sorter=order), max(0, keys.size - 1))]
                mine = np.flatnonzero(keys[at] == found)
                all_vectors[at[mine]] = self._units(table[self.column], length, name)[mine]
                has[at[mine]] = True
        rows = np.flatnonzero(has)
        if not rows.size:
            raise CurationError("no pair has a vector: the ids of the data and those of --vectors differ")
        return rows, all_vectors

    def _tables(self, name: str) -> Iterator[pa.Table]:
        try:
            for batch in open_parquet(name, buffer_size=2**20).iter_batches(_ROWS, columns=[ID, self.column]):
                table = pa.Table.from_batches([batch])
                yield table.filter(pc.and_(pc.is_valid(table[ID]), pc.is_valid(table[self.column])))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{name}: cannot be read ({first_line(error)})") from error

    def _units(self, column: pa.ChunkedArray, length: int, name: str) -> Floats:
        numbers = pc.list_flatten(column).to_numpy().astype(np.float32)
        if numbers.size != length * len(column):
            raise CurationError(f"{name}: vectors of several lengths in column {self.column!r}")
        vectors = numbers.reshape(-1, length)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(norms) & (norms > 0)).all():
            raise CurationError(f"{name}: a vector in column {self.column!r} is zero or not finite")
        units: Floats = vectors / norms
        return units


def semantic_pairs(vectors: Floats, rows: Rows, cosine: float, progress: CurationProgress) -> Iterator[Rows]:
    """Yield pairs of rows whose vectors have a cosine of at least the given one: ``[pairs, 2]``.

    Args:
        vectors: of unit length, float32 ``[n, length]``, in an order that follows from the contents.
        rows: those of them to compare, ascending.
        cosine: 0 to 1.
        progress: of the clusters.
    """
    clusters = _clusters(vectors, rows)
    progress.begin("semantic copies", len(clusters))
    for mine in clusters:
        for start in range(0, mine.size, _BLOCK):
            block = mine[start : start + _BLOCK]
            likeness = vectors[block] @ vectors[mine[start:]].T
            some, others = np.nonzero(likeness >= cosine)
            later = others > some
            yield np.stack([block[some[later]], mine[start:][others[later]]], axis=1)
        progress.advance()


def _clusters(vectors: Floats, rows: Rows) -> list[Rows]:
    """Return the rows of each cluster, ascending."""
    count = -(-rows.size // _CLUSTER)
    if count < 2:
        return [rows]
    import faiss

    sample = rows[np.linspace(0, rows.size - 1, min(rows.size, count * _SAMPLE)).astype(np.int64)]
    means = faiss.Kmeans(vectors.shape[1], count, niter=_ROUNDS, seed=1, spherical=True, min_points_per_centroid=1)
    means.train(np.ascontiguousarray(vectors[sample]))
    nearest = np.concatenate(
        [
            means.index.search(np.ascontiguousarray(vectors[rows[start : start + _ROWS]]), _NEAREST)[1]
            for start in range(0, rows.size, _ROWS)
        ]
    )
    order = np.argsort(nearest, axis=None, kind="stable")
    cuts = np.searchsorted(nearest.ravel()[order], np.arange(1, count))
    return [np.sort(rows[part // _NEAREST]) for part in np.split(order, cuts)]


def _is_vector(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))
