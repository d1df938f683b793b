"""Find the pairs of copies among signatures, method after method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np

from model_export.curation.dedup import DedupSettings, Method
from model_export.curation.groups import Groups
from model_export.curation.near import MOST_PICTURES, near_pairs
from model_export.curation.progress import CurationProgress
from model_export.curation.semantic import VectorFiles, semantic_pairs
from model_export.curation.signature_table import SignatureTable
from model_export.curation.views import Bits, Rows, contrasts
from model_export.errors import CurationError

_ROWS: Final = 65_536
_LEAST_CONTRAST: Final = 64.0
"""Norm of the coefficients of a flat picture: about two grey levels. Flat pictures look alike, and are not compared."""


@dataclass(frozen=True, eq=False)
class Copies:
    """Search for pairs of copies.

    Attributes:
        table: of signatures.
        groups: of pairs found so far, which the caller joins.
        scratch: folder for arrays.
        progress: of the search.
        vectors: for the method ``semantic``.
    """

    table: SignatureTable
    groups: Groups
    scratch: Path
    progress: CurationProgress
    vectors: VectorFiles | None = None

    @cached_property
    def shown(self) -> Rows:
        """Return the rows whose pictures are not flat, ascending."""
        found = [np.zeros(0, np.int64)]
        for start in range(0, len(self.table.near), _ROWS):
            near = contrasts(self.table.near[start : start + _ROWS])
            found.append(start + np.flatnonzero(near >= _LEAST_CONTRAST))
        return np.concatenate(found)

    def pairs(self, method: Method, settings: DedupSettings) -> Iterator[Rows]:
        """Yield pairs of rows, ``[pairs, 2]``.

        Raises:
            CurationError: more pictures than can be compared.
        """
        if method is Method.EXACT:
            yield self.exact()
        elif method is Method.NEAR:
            yield from self.near(settings.similarity)
        else:
            yield from self.semantic(settings)

    def exact(self) -> Rows:
        """Return each picture that has the pixels of an earlier one, with that one: ``[pairs, 2]``."""
        rows, exact = np.flatnonzero(self.table.pixels), self.table.exact
        rows = rows[np.lexsort((rows, *exact[rows].T))]
        same = (exact[rows[1:]] == exact[rows[:-1]]).all(axis=1)
        return np.stack([rows[:-1][same], rows[1:][same]], axis=1)

    def exact_groups(self) -> list[Rows]:
        """Return the rows of each group of exact copies."""
        groups = Groups(self.table.keys.size)
        groups.join(self.exact())
        firsts = groups.firsts()
        order = np.argsort(firsts, kind="stable")
        starts = np.flatnonzero(np.diff(firsts[order], prepend=-1))
        return [rows for rows in np.split(order, starts[1:]) if rows.size > 1]

    def near(self, similarity: float, apart: Bits | None = None) -> Iterator[Rows]:
        """Yield pairs of near copies; of a group found so far, the first is compared.

        Args:
            similarity: least correlation.
            apart: of each row; rows of which this is equal are not compared. All are by default.

        Raises:
            CurationError: more pictures than can be compared.
        """
        rows = self.shown[self.groups.firsts(self.shown) == self.shown]
        if rows.size > MOST_PICTURES:
            raise CurationError(f"{rows.size:,} pictures: at most {MOST_PICTURES:,} can be compared; divide the data")

        def joined(some: Rows, others: Rows) -> Bits:
            known = self.groups.joined(rows[some], rows[others])
            return known if apart is None else known | (apart[rows[some]] == apart[rows[others]])

        near = self.table.part(rows, self.scratch)
        for pairs in near_pairs(near, similarity, self.scratch / "codes", joined, self.progress):
            yield rows[pairs]

    def semantic(self, settings: DedupSettings) -> Iterator[Rows]:
        """Yield pairs of pictures whose vectors are near; of a group found so far, the first is compared.

        Raises:
            CurationError: no vectors are given, or they do not fit the pairs.
            DataError: a file of vectors cannot be read.
        """
        if self.vectors is None:
            raise CurationError("--method semantic needs vectors: name Parquet files of them with --vectors")
        rows, vectors = self.vectors.read(self.table.keys, settings.seed, self.scratch / "vectors")
        rows = rows[self.groups.firsts(rows) == rows]
        yield from semantic_pairs(vectors, rows, settings.cosine, self.progress)
