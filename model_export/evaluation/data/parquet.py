"""Read labelled images from Parquet files, with training's columns or those of Hugging Face data sets."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from model_export.data.parquet import is_binary, is_string, open_parquet
from model_export.errors import DataError
from model_export.evaluation.data.samples import Label, Rows, Sample
from service.errors import InvalidImage

_ROWS_AT_ONCE: Final = 64
_READ_BYTES: Final = 2**20
"""Size of the pieces of a column: without it, all images of a row group would be in memory at once."""


class ParquetSource:
    """A file with a column of encoded images and one of classes.

    Images are binary, or a structure with a binary field ``bytes``. Classes are names or numbers; a file by the Hugging
    Face library names the numbers, otherwise the user must.
    """

    def __init__(self, path: Path, *, image: str, label: str) -> None:
        """Check the columns and read the classes.

        Raises:
            DataError: the file cannot be read, lacks a column, or holds one of another type; a row has no class.
        """
        self.path = path
        self._image = image
        self._file: pq.ParquetFile = open_parquet(path, buffer_size=_READ_BYTES)
        schema = self._file.schema_arrow
        for column, option in ((image, "--image-column"), (label, "--label-column")):
            if column not in schema.names:
                raise DataError(
                    f"{path}: no column {column!r} (it has: {', '.join(schema.names)}); name yours with {option}"
                )
        if not _is_picture(schema.field(image).type):
            raise DataError(f"{path}: column {image!r} is {schema.field(image).type}, not encoded images (binary)")
        self.class_names = _class_names(schema, label)
        self.labels: Sequence[Label] = self._read_labels(label, schema.field(label).type)

    def samples(self, rows: Rows) -> Iterator[Sample]:
        """Yield the images of these rows, with few in memory at a time."""
        first = 0
        for group in range(self._file.num_row_groups):
            end = first + self._file.metadata.row_group(group).num_rows
            wanted = rows[(rows >= first) & (rows < end)]
            if len(wanted):
                yield from self._of_group(group, first, wanted)
            first = end

    def _of_group(self, group: int, first: int, wanted: Rows) -> Iterator[Sample]:
        batches = self._file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[self._image], use_threads=False)
        while True:
            try:
                batch = next(batches, None)
            except (OSError, pa.ArrowException) as exc:
                raise DataError(
                    f"{self.path}: row group {group} cannot be read ({str(exc).splitlines()[0]}); copy the file again"
                ) from exc
            if batch is None:
                return
            for row in wanted[(wanted >= first) & (wanted < first + len(batch))].tolist():
                value = batch.column(0)[row - first].as_py()
                yield Sample(row, f"{self.path}, row {row}", partial(_encoded, value))
            first += len(batch)

    def _read_labels(self, label: str, kind: pa.DataType) -> Sequence[Label]:
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not is_string(values) and not pa.types.is_integer(values):
            raise DataError(f"{self.path}: column {label!r} is {kind}; it must hold class names or numbers")
        try:
            column = self._file.read([label], use_threads=False)[label]
        except (OSError, pa.ArrowException) as exc:
            raise DataError(f"{self.path}: column {label!r} cannot be read ({str(exc).splitlines()[0]})") from exc
        if column.null_count:
            raise DataError(f"{self.path}: column {label!r} has {column.null_count:,} empty rows; fill in the classes")
        if not len(column):
            raise DataError(f"{self.path}: has no rows")
        labels: list[Label] = column.to_pylist()
        return labels


def _is_picture(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and is_binary(field.type) for field in kind)
    return is_binary(kind)


def _encoded(value: bytes | dict[str, Any] | None) -> bytes:
    content: bytes | None = value.get("bytes") if isinstance(value, dict) else value
    if content is None:
        raise InvalidImage("The row holds no image.")
    return content


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Return the class names in the metadata of a file by the Hugging Face library, or None."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (TypeError, KeyError, ValueError):
        return None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
