"""Read image-text pairs from Parquet files, a row group at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from model_export.errors import DataError


@dataclass(frozen=True)
class PairColumns:
    """Names of the columns: encoded image (binary), caption or noun (string), class (string)."""

    image: str = "image"
    text: str = "text"
    label: str = "label"


class Pair(NamedTuple):
    """One row: encoded image bytes, its noun or caption, and its class."""

    image: bytes
    text: str
    label: str


class RowGroup(NamedTuple):
    """A row group of a file, and the global number of its first row."""

    path: Path
    number: int
    first_row: int
    rows: int


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


def _open(path: Path, columns: PairColumns) -> pq.ParquetFile:
    file = open_parquet(path)
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
            msg = f"{path}: no column {column!r} (it has: {found}); name yours under [data.columns]{captions}"
            raise DataError(msg)
        if not fits(file.schema_arrow.field(column).type):
            msg = f"{path}: column {column!r} is {file.schema_arrow.field(column).type}, not {kind}"
            raise DataError(msg)
    return file


class PairReader:
    """Reads rows of several files by global number, and keeps the last used row groups in memory.

    Rows are numbered through the files in the given order. The reader can be pickled; each process opens its own
    files. Images stay encoded.
    """

    def __init__(self, paths: Sequence[Path], columns: PairColumns, *, groups_in_memory: int) -> None:
        """Check the columns of every file, and list its row groups.

        Raises:
            DataError: a file cannot be read, lacks a column, or holds one of another type.
        """
        self.paths = tuple(paths)
        self.columns = columns
        self.groups: list[RowGroup] = []
        self._capacity = groups_in_memory
        self._files: dict[Path, pq.ParquetFile] = {}
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        row = 0
        for path in self.paths:
            file = _open(path, columns)
            for index in range(file.num_row_groups):
                count = file.metadata.row_group(index).num_rows
                self.groups.append(RowGroup(path, index, row, count))
                row += count
        if row == 0:
            msg = f"no rows in {', '.join(map(str, self.paths)) or 'the data: name a file'}"
            raise DataError(msg)
        self._first_rows = np.array([group.first_row for group in self.groups], dtype=np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_cache": OrderedDict()}

    def rows(self, path: Path) -> npt.NDArray[np.int64]:
        """Return the global row numbers of one file, int64 ``[rows]``, ascending."""
        groups = [group for group in self.groups if group.path == path]
        return np.arange(groups[0].first_row, groups[-1].first_row + groups[-1].rows, dtype=np.int64)

    def text_columns(self) -> tuple[list[str], list[str]]:
        """Read the nouns and the classes of all rows, without the images.

        Raises:
            DataError: a row has no text or no class.
        """
        texts: list[str] = []
        labels: list[str] = []
        for path in self.paths:
            table = _open(path, self.columns).read([self.columns.text, self.columns.label])
            for name in (self.columns.text, self.columns.label):
                if table[name].null_count:
                    msg = f"{path}: column {name!r} has {table[name].null_count} empty rows; give each row a value"
                    raise DataError(msg)
            texts += table[self.columns.text].to_pylist()
            labels += table[self.columns.label].to_pylist()
        return texts, labels

    def where(self, row: int) -> str:
        """Return a row's file, and its number within that file, for an error message."""
        group = self.groups[self._group_of(row)]
        first = next(other.first_row for other in self.groups if other.path == group.path)
        return f"{group.path}, row {row - first}"

    def __getitem__(self, row: int) -> Pair:
        number = self._group_of(row)
        table = self._table(number)
        at = row - self.groups[number].first_row
        columns = self.columns
        image, text, label = (table[name][at].as_py() for name in (columns.image, columns.text, columns.label))
        if image is None or text is None or label is None:
            msg = f"{self.where(row)}: has an empty field"
            raise DataError(msg)
        return Pair(image, text, label)

    def _group_of(self, row: int) -> int:
        return int(np.searchsorted(self._first_rows, row, side="right")) - 1

    def _table(self, number: int) -> pa.Table:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        group = self.groups[number]
        columns = self.columns
        try:
            if group.path not in self._files:
                self._files[group.path] = _open(group.path, columns)
            table = self._files[group.path].read_row_group(
                group.number, columns=[columns.image, columns.text, columns.label]
            )
        except (OSError, pa.ArrowException) as error:
            msg = f"{group.path}: row group {group.number} cannot be read ({str(error).splitlines()[0]})"
            raise DataError(msg) from error
        self._cache[number] = table
        if len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return table
