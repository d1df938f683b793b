"""Read image-text pairs from a Parquet file, a row group at a time."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model_export.data.locations import PathOrUrl, footer_digest, open_file, refusing
from model_export.data.pairs import BrokenRowError, Pair, Rows, Texts
from model_export.errors import DataError


@dataclass(frozen=True)
class PairColumns:
    """Names of the columns: encoded image (binary), caption or noun (string), class (string).

    Attributes:
        label_required: refuse a file without the column of classes; otherwise its rows have none.
    """

    image: str = "image"
    text: str = "text"
    label: str = "label"
    label_required: bool = False


def open_parquet(path: PathOrUrl, *, buffer_size: int = 0) -> pq.ParquetFile:
    """Open a file to read columns in pieces of ``buffer_size`` bytes, or a row group at a time if it is 0.

    Raises:
        DataError: the file does not exist, or is not a Parquet file.
    """
    return _parquet(open_file(path), path, buffer_size=buffer_size)


def _parquet(file: pa.NativeFile, path: PathOrUrl, *, buffer_size: int = 0) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, buffer_size=buffer_size, pre_buffer=buffer_size == 0)
    except (OSError, pa.ArrowException) as error:
        msg = f"{path}: is not a readable Parquet file ({str(error).splitlines()[0]})"
        raise DataError(msg) from error


def is_binary(kind: pa.DataType) -> bool:
    """Return whether a column holds bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_string(kind: pa.DataType) -> bool:
    """Return whether a column holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


class ParquetPairs:
    """The pairs of one file.

    Attributes:
        name: path or URL of the file.
        has_labels: whether it has the column of classes.
        group_rows: rows of each row group.
        digest: of its size and footer.
    """

    def __init__(self, name: PathOrUrl, columns: PairColumns) -> None:
        """Check the columns, and list the row groups.

        Raises:
            DataError: the file cannot be read, lacks a column, or holds one of another type.
        """
        self.name = str(name)
        self._columns = columns
        source = open_file(name)
        file = self._checked(_parquet(source, name))
        metadata = file.metadata
        with refusing(name):
            self.digest = footer_digest(source)
        self.has_labels = columns.label in file.schema_arrow.names
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.group_rows: Rows = np.array(counts, dtype=np.int64)

    def where(self, row: int) -> str:
        """Return the file and the row."""
        return f"{self.name}, row {row}"

    def texts(self, group: int) -> list[Texts]:
        """Read the texts of a row group, without the images.

        Raises:
            DataError: it is damaged.
        """
        return self._texts(self._read(group, []))

    def load(self, group: int) -> _Table:
        """Read a row group.

        Raises:
            DataError: it is damaged.
        """
        table = self._read(group, [self._columns.image])
        first_row = int(self.group_rows[:group].sum())
        return _Table(self, table[self._columns.image], self._texts(table), first_row)

    def _texts(self, table: Any) -> list[Texts]:  # noqa: ANN401 - pyarrow has no types
        columns = self._columns
        labels = _strings(table[columns.label]) if self.has_labels else repeat(None, table.num_rows)
        return list(map(Texts, _strings(table[columns.text]), labels))

    def _read(self, group: int, images: list[str]) -> Any:  # noqa: ANN401 - pyarrow has no types
        columns = self._columns
        labels = [columns.label] if self.has_labels else []
        try:
            file = self._checked(open_parquet(self.name))
            return file.read_row_group(group, columns=[*images, columns.text, *labels])
        except (OSError, pa.ArrowException) as error:
            msg = f"{self.name}: row group {group} cannot be read ({str(error).splitlines()[0]})"
            raise DataError(msg) from error

    def _checked(self, file: pq.ParquetFile) -> pq.ParquetFile:
        columns = self._columns
        for column, kind, fits in (
            (columns.image, "binary", is_binary),
            (columns.text, "string", is_string),
            (columns.label, "string", is_string),
        ):
            if column not in file.schema_arrow.names:
                if column == columns.label and not columns.label_required:
                    continue
                found = ", ".join(file.schema_arrow.names)
                captions = (
                    "; captions without classes need captions.class_name_share = 0" if column == columns.label else ""
                )
                msg = f"{self.name}: no column {column!r} (it has: {found}); name yours under [data.columns]{captions}"
                raise DataError(msg)
            if not fits(file.schema_arrow.field(column).type):
                msg = f"{self.name}: column {column!r} is {file.schema_arrow.field(column).type}, not {kind}"
                raise DataError(msg)
        return file


@dataclass(frozen=True)
class _Table:
    """A row group in memory: its images encoded, its texts as Python values, which are a small part of it."""

    file: ParquetPairs
    images: Any
    texts: list[Texts]
    first_row: int

    def __getitem__(self, index: int) -> Pair:
        image = self.images[index].as_py()
        if image is None:
            raise BrokenRowError(f"{self.file.where(self.first_row + index)}: has no image")
        return Pair(image, *self.texts[index])


def _strings(column: Any) -> list[str | None]:  # noqa: ANN401 - pyarrow has no types
    """Return a column of strings; None where a value is missing or not UTF-8."""
    try:
        values: list[str | None] = column.to_pylist()
    except UnicodeDecodeError:
        return [_string(value) for value in column]
    return values


def _string(value: Any) -> str | None:  # noqa: ANN401 - pyarrow has no types
    try:
        text: str | None = value.as_py()
    except UnicodeDecodeError:
        return None
    return text
