"""Read a piece of the data as Arrow tables of limited bytes, with the columns of `stage`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from model_export.curation.picture_folders import is_picture_folder, picture_tables
from model_export.curation.pieces import InputColumns, Piece, checked_parquet
from model_export.curation.stage import ID, IMAGE, IMAGE_REF, TEXT, URL, StageResult, row_ids, split
from model_export.data.pairs import BrokenRowError
from model_export.data.patterns import is_tar
from model_export.errors import DataError, first_line

_BUFFER: Final = 2**20
"""Bytes of a column that are read at a time; without a buffer, pyarrow reads a whole row group."""
_TYPES: Final = {ID: pa.string(), TEXT: pa.string(), URL: pa.string(), IMAGE_REF: pa.string(), IMAGE: pa.binary()}
_NO_IMAGE: Final = "no image"


def read_piece(piece: Piece, columns: InputColumns, *, null_images: bool = False) -> Iterator[StageResult]:
    """Yield the rows of a piece in order, in tables.

    Args:
        piece: of the data.
        columns: names in the data.
        null_images: keep rows without an image; else they are dropped from data with images.

    Raises:
        DataError: the file is damaged or was changed.
    """
    if is_picture_folder(piece.file.name):
        tables = picture_tables(piece.file.name, piece.paths, piece.batch_rows)
    elif is_tar(piece.file.name):
        tables = _tar(piece, columns)
    else:
        tables = _parquet(piece, columns)
    row = piece.first_row
    try:
        for table in tables:
            # One file is read at a time: 2 to 5 times the bytes of a table are in memory.
            yield _usable(table, piece, row, null_images=null_images)
            row += table.num_rows
    except (OSError, IndexError, pa.ArrowException) as error:
        name = piece.file.name
        raise DataError(f"{name}: row {row:,} and following cannot be read ({first_line(error)})") from error


def _parquet(piece: Piece, columns: InputColumns) -> Iterator[pa.Table]:
    file = checked_parquet(piece.file.name, columns, buffer_size=_BUFFER)
    renamed = columns.renamed()
    for batch in file.iter_batches(piece.batch_rows, row_groups=list(range(piece.first, piece.stop))):
        table = pa.Table.from_batches([batch])
        yield table.rename_columns([renamed.get(each, each) for each in table.column_names])


def _tar(piece: Piece, columns: InputColumns) -> Iterator[pa.Table]:
    from model_export.data.tar import GROUP, TarPairs  # brings what decodes images

    file = TarPairs(piece.file.name, columns.of_pairs())
    groups_at_once = max(1, piece.batch_rows // GROUP)
    for first in range(piece.first, piece.stop, groups_at_once):
        pairs: list[tuple[bytes | None, str | None, str | None]] = []
        for group in range(first, min(first + groups_at_once, piece.stop)):
            samples = file.load(group)
            pairs += [_pair(samples, at) for at in range(int(file.group_rows[group]))]
        images, texts, labels = zip(*pairs, strict=True)
        yield pa.table(
            {
                IMAGE: pa.array(images, pa.binary()),
                TEXT: pa.array(texts, pa.string()),
                columns.label: pa.array(labels, pa.string()),
            }
        )


def _pair(samples: Any, at: int) -> tuple[bytes | None, str | None, str | None]:  # noqa: ANN401 - a group of a tar
    """Return the image, the text and the label of a sample."""
    try:
        image, text, label = samples[at]
    except BrokenRowError:
        return (None, *samples.texts(at))
    return image, text, label


def _usable(table: pa.Table, piece: Piece, row: int, *, null_images: bool) -> StageResult:
    """Add missing ids, cast columns, replace text that is not UTF-8 by null, and drop rows without an image."""
    given = ID in table.column_names
    ids = row_ids(piece.file.digest, row, table.num_rows)
    if given:
        ids = pc.coalesce(table[ID].cast(pa.string()), ids)
        table = table.drop_columns([ID])
    table = table.add_column(0, ID, ids)
    for name, kind in _TYPES.items():
        if name in table.column_names:
            column = table[name] if kind == pa.binary() else _valid(table[name])
            table = table.set_column(table.column_names.index(name), name, column.cast(kind))
    if null_images or IMAGE not in table.column_names:
        return StageResult(table, {})
    lacking = pc.is_null(table[IMAGE])
    return split(table, pc.if_else(lacking, pa.scalar(_NO_IMAGE), pa.scalar(None, pa.string())))


def _valid(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of strings with null in place of values that are not UTF-8."""
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        values = [_decoded(value) for value in column.cast(pa.binary()).to_pylist()]
        return pa.chunked_array([pa.array(values, pa.string())])
    return column


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None
