"""Count words and pairs of words of large texts, in pieces that several processes count, within limited memory.

Each piece of text leaves one Parquet file of counts, with a row group for each partition of the words. The totals are
found a partition at a time; so no table of all pairs of words is ever in memory, and every count is exact.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model_export.curation.match import parts_of
from model_export.curation.word_cuts import normalise_lines
from model_export.data.locations import describe, open_file, refusing
from model_export.data.parquet import is_string, open_parquet
from model_export.errors import DataError

PARTITIONS: Final = 16
_PIECE: Final = 16 * 2**20
_LINE: Final = 2**20
"""Bytes that are looked through for the end of a line behind a piece; a longer line is cut."""
WORDS, PAIRS = "words", "pairs"
_COUNT: Final = "count"


@dataclass(frozen=True)
class TextPiece:
    """Bytes of a text file, from the first line that begins there; or a row group of a Parquet file.

    Attributes:
        number: place among the pieces.
        name: of the file.
        start: first byte, or the row group.
        size: bytes; 0 for a row group.
        column: of the texts in Parquet.
    """

    number: int
    name: str
    start: int
    size: int
    column: str

    def lines(self) -> bytes:
        """Read the piece.

        Raises:
            DataError: it cannot be read.
        """
        if not self.size:
            column = open_parquet(self.name).read_row_group(self.start, columns=[self.column])[self.column]
            return b"\n".join(text.replace(b"\n", b" ") for text in column.cast(pa.binary()).drop_null().to_pylist())
        with refusing(self.name), open_file(self.name) as file:
            before = min(_LINE, self.start)
            content: bytes = file.read_at(before + self.size + _LINE, self.start - before)
        end = _line_end(content, before + self.size)
        return content[_line_end(content, before) if self.start else 0 : end]


def _line_end(content: bytes, place: int) -> int:
    """Return the end of the line that holds the byte before ``place``."""
    if place >= len(content):
        return len(content)
    found = content.find(b"\n", place - 1)
    if found >= 0:
        return found + 1
    return len(content) if len(content) < place + _LINE else place


def text_pieces(names: Sequence[str], column: str) -> list[TextPiece]:
    """Cut text files and Parquet files into pieces.

    Raises:
        DataError: a file cannot be read, or lacks the column.
    """
    pieces: list[TextPiece] = []
    for name in names:
        if name.endswith(".parquet"):
            file = open_parquet(name)
            if column not in file.schema_arrow.names or not is_string(file.schema_arrow.field(column).type):
                raise DataError(f"{name}: has no column {column!r} of strings; name it with --text-column")
            pieces += [TextPiece(len(pieces) + at, name, at, 0, column) for at in range(file.metadata.num_row_groups)]
        else:
            starts = range(0, describe(name).size, _PIECE)
            pieces += [TextPiece(len(pieces) + at, name, start, _PIECE, column) for at, start in enumerate(starts)]
    return pieces


@dataclass(frozen=True)
class PieceCounter:
    """Counts a piece into files in a folder; can be called in any process."""

    folder: Path

    def __call__(self, piece: TextPiece) -> int:
        """Return the number of words of a piece.

        Raises:
            DataError: the piece is not UTF-8.
        """
        content = piece.lines()
        try:
            lines = content.decode()
        except UnicodeDecodeError as error:
            where = f"byte {error.start:,} of its piece {piece.number}" if piece.size else f"row group {piece.start}"
            raise DataError(f"{piece.name}: is not UTF-8 ({where}); convert it, such as with iconv") from error
        parts, rows, glued = parts_of(normalise_lines(lines))
        encoded = parts.dictionary_encode()
        words, ids = encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)
        texts = words.to_pylist()
        partition = np.fromiter((zlib.crc32(text.encode()) % PARTITIONS for text in texts), np.int64, len(texts))
        is_word = np.fromiter((text[0].isalnum() or text[0] == "_" for text in texts), np.bool_, len(texts))
        of_words = ids[is_word[ids]] if len(ids) else ids
        seen, counts = np.unique(of_words, return_counts=True)
        self._write(piece, WORDS, pa.table({"a": words.take(pa.array(seen)), _COUNT: counts}), partition[seen])
        follows = (rows[1:] == rows[:-1]) & ~glued[:-1] & is_word[ids[:-1]] & is_word[ids[1:]]
        keys, counts = np.unique(ids[:-1][follows] * len(texts) + ids[1:][follows], return_counts=True)
        first, second = keys // max(1, len(texts)), keys % max(1, len(texts))
        pairs = {"a": words.take(pa.array(first)), "b": words.take(pa.array(second)), _COUNT: counts}
        self._write(piece, PAIRS, pa.table(pairs), partition[first])
        return len(of_words)

    def _write(self, piece: TextPiece, kind: str, table: pa.Table, partition: Any) -> None:  # noqa: ANN401 - an array
        with pq.ParquetWriter(self.folder / f"{piece.number:06d}.{kind}", table.schema, compression="zstd") as writer:
            for each in range(PARTITIONS):
                part = table.filter(pa.array(partition == each))
                writer.write_table(part, row_group_size=max(1, part.num_rows))


def totals(folder: Path, kind: str, least: int) -> Iterator[pa.Table]:
    """Yield the words or pairs that were counted at least so often, a partition at a time, with their counts."""
    files = sorted(folder.glob(f"*.{kind}"))
    for partition in range(PARTITIONS):
        tables = [pq.ParquetFile(file).read_row_group(partition) for file in files]
        if not tables:
            return
        joined = pa.concat_tables(tables)
        keys = [name for name in joined.column_names if name != _COUNT]
        summed = joined.group_by(keys).aggregate([(_COUNT, "sum")]).rename_columns([*keys, _COUNT])
        yield summed.filter(pa.array(summed[_COUNT].to_numpy() >= least))
