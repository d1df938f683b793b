"""Cut input files into pieces: neighbouring row groups of one file, the work that makes one output shard.

The plan depends on names and contents of the files and on the size of a piece only, never on their order or the number
of workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from model_export.curation.picture_folders import folder_digest, is_picture_folder, paths_digest, picture_groups
from model_export.curation.stage import ID, IMAGE, IMAGE_REF, TEXT, URL
from model_export.data.locations import describe, open_file, refusing
from model_export.data.pairs import Rows
from model_export.data.parquet import PairColumns, is_binary, is_string, open_parquet
from model_export.data.patterns import is_tar
from model_export.errors import DataError

_READ_AT_ONCE: Final = 8 * 2**20
_FILES_AT_ONCE: Final = 16


class InputColumns(NamedTuple):
    """Names of the columns in the data; only the texts are required, and not even they if their name is empty.

    In tars, text and label are keys of JSON.
    """

    id: str = "id"
    text: str = "text"
    image: str = "image"
    image_ref: str = "image_ref"
    url: str = "url"
    label: str = "label"

    def renamed(self) -> dict[str, str]:
        """Return the name in the data → the name in curation."""
        return {self.id: ID, self.text: TEXT, self.image: IMAGE, self.image_ref: IMAGE_REF, self.url: URL}

    def of_pairs(self) -> PairColumns:
        """Return the names as the readers of training take them."""
        return PairColumns(self.image, self.text, self.label)


class InputFile(NamedTuple):
    """A file of the data, or a folder of pictures: its name as given, and its `file_digest`."""

    name: str
    digest: str


@dataclass(frozen=True)
class Piece:
    """Row groups ``first`` to ``stop`` of a file.

    Attributes:
        number: place in the plan; names the output shard.
        file: the file.
        first: its first row group in this piece.
        stop: the row group behind its last.
        first_row: number of its first row within the file.
        rows: number of its rows.
        batch_rows: rows that are read at a time.
        paths: of its pictures, if the file is a folder of them.
    """

    number: int
    file: InputFile
    first: int
    stop: int
    first_row: int
    rows: int
    batch_rows: int
    paths: tuple[str, ...] = ()

    @property
    def shard(self) -> str:
        """Return the name of the output shard, without a suffix."""
        return f"{self.number:05d}"

    @property
    def source(self) -> dict[str, Any]:
        """Return the piece for the record of its shard: which rows of which content."""
        source = {"sha256": self.file.digest, "row_groups": [self.first, self.stop], "rows": self.rows}
        return source | {"paths": paths_digest(self.paths)} if self.paths else source


class PieceSizes(NamedTuple):
    """Sizes in bytes, uncompressed: of a piece, and of a table that is read at once.

    A row group that is larger than a piece is a piece; a row that is larger than a table is a table.
    """

    piece: int = 256 * 2**20
    table: int = 32 * 2**20


def file_digest(name: str) -> str:
    """Return the sha256 of a file, or of a folder of pictures, in hexadecimal.

    Raises:
        DataError: it cannot be read.
    """
    if is_picture_folder(name):
        return folder_digest(name)
    digest = hashlib.sha256()
    with refusing(name), open_file(name) as file:
        while block := file.read(_READ_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def in_order(names: Sequence[str], digests: Mapping[str, str]) -> list[InputFile]:
    """Return the files in an order that follows from their last names and contents."""
    files = [InputFile(name, digests[name]) for name in names]
    return sorted(files, key=lambda file: (PurePosixPath(file.name).name, file.digest))


def plan(files: Sequence[InputFile], columns: InputColumns, sizes: PieceSizes) -> list[Piece]:
    """Cut files into pieces.

    Raises:
        DataError: a file cannot be read, lacks the column of texts, or holds a column of another type; or two with rows
            have the same content.
    """
    with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
        groups = list(threads.map(lambda file: _groups(file.name, columns), files))
    pieces: list[Piece] = []
    known: dict[str, str] = {}
    for file, (rows, size, paths) in zip(files, groups, strict=True):
        if rows.sum():
            if file.digest in known:
                raise DataError(f"{known[file.digest]} and {file.name} have the same content; name one of them")
            known[file.digest] = file.name
        for first, stop in _cuts(size.tolist(), sizes.piece):
            here, total = int(rows[first:stop].sum()), int(size[first:stop].sum())
            if here:
                batch = max(1, min(here, sizes.table * here // max(1, total)))
                row = int(rows[:first].sum())
                pieces.append(Piece(len(pieces), file, first, stop, row, here, batch, paths[row : row + here]))
    return pieces


def _cuts(sizes: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of neighbouring groups of at most ``most`` bytes, or of one group."""
    first, total = 0, 0
    for at, size in enumerate(sizes):
        if at > first and total + size > most:
            yield first, at
            first, total = at, 0
        total += size
    if sizes:
        yield first, len(sizes)


def _groups(name: str, columns: InputColumns) -> tuple[Rows, Rows, tuple[str, ...]]:
    """Return the number of rows and of bytes of each row group of a file, int64, and the paths of a folder."""
    if is_picture_folder(name):
        return picture_groups(name)
    if is_tar(name):
        from model_export.data.tar import TarPairs  # brings what decodes images

        rows = TarPairs(name, columns.of_pairs()).group_rows
        return rows, rows * describe(name).size // max(1, int(rows.sum())), ()
    file = checked_parquet(name, columns)
    found = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    return (
        np.array([group.num_rows for group in found], dtype=np.int64),
        np.array([group.total_byte_size for group in found], dtype=np.int64),
        (),
    )


def checked_parquet(name: str, columns: InputColumns, *, buffer_size: int = 0) -> pq.ParquetFile:
    """Open a Parquet file, and check names and types of its columns.

    Raises:
        DataError: it cannot be read, lacks the texts, holds a column of another type, or one that would get the name of
            another.
    """
    file = open_parquet(name, buffer_size=buffer_size)
    schema = file.schema_arrow
    if columns.text and columns.text not in schema.names:
        raise DataError(
            f"{name}: no column {columns.text!r} of texts (it has: {', '.join(schema.names)}); "
            "name yours under [data.columns], or with --text-column"
        )
    for given, used in columns.renamed().items():
        if given not in schema.names:
            continue
        kind = schema.field(given).type
        fits, wanted = (is_binary, "binary") if used == IMAGE else (is_string, "string")
        if not fits(kind):
            raise DataError(f"{name}: column {given!r} is {kind}, not {wanted}; write it as {wanted}")
        if given != used and used in schema.names and used not in columns.renamed():
            raise DataError(
                f"{name}: column {given!r} becomes {used!r}, and another column has that name; rename one of them"
            )
    return file
