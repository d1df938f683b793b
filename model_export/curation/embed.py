"""Stage that puts the vectors of pictures and captions in their place, for `anyclass-export embed`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from model_export.curation.encoding import NO_PICTURE, BundleEncoder, Encoded
from model_export.curation.stage import ID, IMAGE, TEXT, StageResult, digest_of
from model_export.errors import CurationError

VectorType: TypeAlias = Literal["float32", "float16"]

IMAGE_EMBEDDING: Final = "image_embedding"
IMAGE_PROBLEM: Final = "image_problem"
TEXT_EMBEDDING: Final = "text_embedding"
TEXT_PROBLEM: Final = "text_problem"
BROKEN: Final = "broken picture"
UNUSABLE_TEXT: Final = "no text"
CUT: Final = "text cut to the context"
_VERSION: Final = 2


@dataclass(frozen=True)
class Embed:
    """Stage that keeps ids and chosen columns, and adds vectors of unit length.

    Attributes:
        encoder: of the bundle.
        images: encode pictures.
        texts: encode captions.
        columns: others that pass through.
        dtype: of a vector's numbers.
        drop_broken: drop a row without a vector; else it stays, with a null and the reason.
        takes_null_images: as `stage.takes_null_images` asks.
    """

    takes_null_images: ClassVar[bool] = True
    encoder: BundleEncoder
    images: bool = True
    texts: bool = False
    columns: tuple[str, ...] = ()
    dtype: VectorType = "float32"
    drop_broken: bool = False
    name: str = field(default="embed", init=False)

    @property
    def settings(self) -> dict[str, Any]:
        """Return what decides the vectors, as `dataset.json` has it."""
        return {
            "images": self.images,
            "texts": self.texts,
            "columns": list(self.columns),
            "dtype": self.dtype,
            "drop_broken": self.drop_broken,
            "encoder": self.encoder.decides,
        }

    @classmethod
    def recorded(cls, encoder: BundleEncoder, settings: Mapping[str, Any]) -> Self:
        """Return the stage whose `settings` these are. Raises KeyError if one is missing."""
        return cls(
            encoder,
            settings["images"],
            settings["texts"],
            tuple(settings["columns"]),
            settings["dtype"],
            settings["drop_broken"],
        )

    @property
    def digest(self) -> str:
        """Return a hash of the settings, the bundle's revision, and provider, precision and versions of the engine."""
        return digest_of(self.name, _VERSION, self.settings)

    def run(self, table: pa.Table) -> StageResult:
        """Return the vectors of the rows.

        Raises:
            CurationError: a column is missing, or the engine failed.
        """
        kept = passed_through(table, self.columns)
        lacking = np.zeros(table.num_rows, np.bool_)
        counts = Counts()
        if self.images:
            found = self.encoder.encode_pictures(each.as_py() for each in needed(table, IMAGE, "pictures"))
            kept = kept.append_column(IMAGE_EMBEDDING, vector_column(found.vectors, found.problems, self.dtype))
            kept = kept.append_column(IMAGE_PROBLEM, pa.array(found.problems, pa.string()))
            lacking |= counts.add(found, BROKEN)
        if self.texts:
            found = self.encoder.encode_texts(needed(table, TEXT, "texts").to_pylist())
            kept = kept.append_column(TEXT_EMBEDDING, vector_column(found.vectors, found.problems, self.dtype))
            kept = kept.append_column(TEXT_PROBLEM, pa.array(found.problems, pa.string()))
            lacking |= counts.add(found, UNUSABLE_TEXT)
        return counts.result(kept, lacking, drop=self.drop_broken)


class Counts:
    """Reasons of rows without a vector, the first of each row, and notes."""

    def __init__(self) -> None:
        self._reasons: dict[int, str] = {}
        self._cut = 0

    def add(self, found: Encoded, reason: str) -> npt.NDArray[np.bool_]:
        """Count rows with a problem, and return which they are: bool ``[rows]``."""
        self._cut += found.cut
        for row, problem in enumerate(found.problems):
            if problem is not None:
                self._reasons.setdefault(row, NO_PICTURE if problem == NO_PICTURE else reason)
        return np.array([problem is not None for problem in found.problems], dtype=np.bool_)

    def result(self, table: pa.Table, lacking: npt.NDArray[np.bool_], *, drop: bool) -> StageResult:
        """Return the rows, without those that lack a vector if they are to be dropped."""
        counts: dict[str, int] = {}
        for reason in self._reasons.values():
            counts[reason] = counts.get(reason, 0) + 1
        cut = {CUT: self._cut} if self._cut else {}
        if drop:
            return StageResult(table.filter(pa.array(~lacking)), dict(sorted(counts.items())), cut)
        return StageResult(table, {}, dict(sorted({**counts, **cut}.items())))


def passed_through(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return ids and chosen columns.

    Raises:
        CurationError: the data have no such column.
    """
    if missing := [name for name in columns if name not in table.column_names]:
        raise CurationError(
            f"no column {missing[0]!r} to pass through (the data have: {', '.join(table.column_names)}); "
            "correct --columns"
        )
    return table.select(list(dict.fromkeys([ID, *columns])))


def needed(table: pa.Table, column: str, what: str) -> pa.ChunkedArray:
    """Return a column.

    Raises:
        CurationError: the data have none.
    """
    if column not in table.column_names:
        raise CurationError(
            f"no column of {what} (the data have: {', '.join(table.column_names)}); name it with --{column}-column"
        )
    return table[column]


def vector_column(rows: npt.NDArray[Any], problems: Sequence[str | None], dtype: VectorType) -> pa.Array:
    """Return a fixed-size list for each row, null for one with a problem.

    Args:
        rows: ``[n, size]``.
        problems: of n rows.
        dtype: of the numbers.
    """
    numbers = pa.array(np.ascontiguousarray(rows, dtype=np.dtype(dtype)).ravel())
    return pa.FixedSizeListArray.from_arrays(numbers, rows.shape[1], mask=pc.is_valid(pa.array(problems, pa.string())))
