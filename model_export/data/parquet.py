"""Read image-text pairs from a Parquet file, a row group at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model_export.data.pairs import Pair, Rows
from model_export.errors import DataError


@dataclass(frozen=True)
class PairColumns:
    """Names of the columns: encoded image (binary), caption or noun (string), class (string)."""

    image: str = "image"
    text: str = "text"
    label: str = "label"


def open_parquet(path: Path, *, buffer_size: int = 0) -> pq.ParquetFile:
    """Open a file to read columns in pieces of ``buffer_size`` bytes, or a row group at a time if it is 0.

    Raises:
        DataError: the file does not exist, or is not a Parquet file.
    """
    try:
        return pq.ParquetFile(path, buffer_size=buffer_size, pre_buffer=buffer_size == 0)
    except FileNotFoundError as error:
        msg = f"{path}: no such file; name the Parquet files of the recipe relative to the recipe's folder"
        raise DataError(msg) from error
    except (OSError, pa.ArrowException) as error:
        msg = f"{path}: is not a readable Parquet file ({str(error).splitlines()[0]})"
        raise DataError(msg) from error


def is_binary(kind: pa.DataType) -> bool:
    """Return whether a column holds bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_string(kind: pa.DataType) -> bool:
    """Return whether a column holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def has_column(path: Path, column: str) -> bool:
    """Return whether a file has a column. Raises `DataError` if it cannot be read."""
    return column in open_parquet(path).schema_arrow.names


class ParquetPairs:
    """The pairs of one file.

    Attributes:
        path: the file.
        group_rows: rows of each row group.
    """

    def __init__(self, path: Path, columns: PairColumns) -> None:
        """Check the columns, and list the row groups.

        Raises:
            DataError: the file cannot be read, lacks a column, or holds one of another type.
        """
        self.path = path
        self._columns = columns
        metadata = self._open().metadata
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.group_rows: Rows = np.array(counts, dtype=np.int64)

    @property
    def name(self) -> str:
        """Return its path."""
        return str(self.path)

    def where(self, row: int) -> str:
        """Return the file and the row."""
        return f"{self.path}, row {row}"

    def text_columns(self) -> tuple[list[str], list[str]]:
        """Read the nouns and the classes of all rows, without the images.

        Raises:
            DataError: a row has no text or no class.
        """
        columns = self._columns
        table = self._open().read([columns.text, columns.label])
        for name in (columns.text, columns.label):
            if table[name].null_count:
                msg = f"{self.path}: column {name!r} has {table[name].null_count} empty rows; give each row a value"
                raise DataError(msg)
        return table[columns.text].to_pylist(), table[columns.label].to_pylist()

    def load(self, group: int) -> _Table:
        """Read a row group.

        Raises:
            DataError: it is damaged.
        """
        columns = self._columns
        try:
            table = self._open().read_row_group(group, columns=[columns.image, columns.text, columns.label])
        except (OSError, pa.ArrowException) as error:
            msg = f"{self.path}: row group {group} cannot be read ({str(error).splitlines()[0]})"
            raise DataError(msg) from error
        return _Table(self, table, columns, int(self.group_rows[:group].sum()))

    def _open(self) -> pq.ParquetFile:
        columns = self._columns
        file = open_parquet(self.path)
        for column, kind, fits in (
            (columns.image, "binary", is_binary),
            (columns.text, "string", is_string),
            (columns.label, "string", is_string),
        ):
            if column not in file.schema_arrow.names:
                found = ", ".join(file.schema_arrow.names)
                captions = (
                    "; captions without classes need captions.class_name_share = 0" if column == columns.label else ""
                )
                msg = f"{self.path}: no column {column!r} (it has: {found}); name yours under [data.columns]{captions}"
                raise DataError(msg)
            if not fits(file.schema_arrow.field(column).type):
                msg = f"{self.path}: column {column!r} is {file.schema_arrow.field(column).type}, not {kind}"
                raise DataError(msg)
        return file


@dataclass(frozen=True)
class _Table:
    """A row group in memory."""

    file: ParquetPairs
    table: Any
    columns: PairColumns
    first_row: int

    def __getitem__(self, index: int) -> Pair:
        columns = self.columns
        image, text, label = (self.table[name][index].as_py() for name in (columns.image, columns.text, columns.label))
        if image is None or text is None or label is None:
            msg = f"{self.file.where(self.first_row + index)}: has an empty field"
            raise DataError(msg)
        return Pair(image, text, label)
