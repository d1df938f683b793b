"""Make one output shard from one piece of the data: read, run the stages, write, commit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from model_export.curation.output import TAR, Output, partial_beside, writing
from model_export.curation.pieces import InputColumns, Piece
from model_export.curation.reading import read_piece
from model_export.curation.stage import ID, IMAGE, Stage, StageResult, run_stage, takes_null_images
from model_export.curation.tar_shards import write_tar
from model_export.data.parquet import PairColumns

READ: Final = "read"
"""Name of the first line of a report: rows that could not be read at all."""
_GROUP_BYTES: Final = 8 * 2**20
_GROUP_ROWS: Final = 65_536


@dataclass
class StageCounts:
    """Rows that went into a stage, those that it dropped, by reason, and remarks on others."""

    name: str
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, result: StageResult) -> None:
        """Count a table."""
        self.rows += result.kept.num_rows + sum(result.dropped.values())
        self.dropped.update(result.dropped)
        self.notes.update(result.notes)

    @property
    def kept(self) -> int:
        """Return the number of rows that went on."""
        return self.rows - sum(self.dropped.values())

    def as_json(self) -> dict[str, Any]:
        """Return the counts as a record has them."""
        return {
            "name": self.name,
            "in": self.rows,
            "out": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "notes": dict(sorted(self.notes.items())),
        }


def total_counts(stages: Sequence[Stage], records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add up the counts of shards, stage by stage, reading first."""
    totals = {name: StageCounts(name) for name in (READ, *(stage.name for stage in stages))}
    for record in records:
        for each in record["stages"]:
            counts = totals[each["name"]]
            counts.rows += each["in"]
            counts.dropped.update(each["dropped"])
            counts.notes.update(each["notes"])
    return [counts.as_json() for counts in totals.values()]


@dataclass(frozen=True)
class ShardMaker:
    """Makes shards of one data set; can be pickled, and called in any process with any piece.

    Attributes:
        stages: in order.
        columns: names in the data.
        output: the folder.
    """

    stages: Sequence[Stage]
    columns: InputColumns
    output: Output

    def __call__(self, piece: Piece) -> dict[str, Any]:
        """Return the record of the piece's shard; make the shard if it is absent or damaged.

        Raises:
            DataError: the data are damaged.
            CurationError: the shard cannot be written.
        """
        if (record := self.output.finished(piece.shard, piece.source)) is not None:
            return record
        path = self.output.shard(piece.shard)
        with writing(path), partial_beside(path) as partial:
            figures = self.write(piece, partial)
            record = self.output.commit(piece.shard, partial, piece.source, figures)
        if self.output.kind == TAR:
            index_tar(path, self.columns.of_pairs())
        return record

    def write(self, piece: Piece, path: Path) -> dict[str, Any]:
        """Write the shard of a piece to a file, and return its number of rows and the counts of its stages."""
        counts = [StageCounts(name) for name in (READ, *(stage.name for stage in self.stages))]
        write = write_tar if self.output.kind == TAR else write_tables
        rows = write(path, self.tables(piece, counts))
        return {"rows": rows, "stages": [each.as_json() for each in counts]}

    def tables(self, piece: Piece, counts: Sequence[StageCounts]) -> Iterator[pa.Table]:
        """Yield the rows of a piece after the last stage, and count those that go.

        Args:
            piece: of the data.
            counts: of reading, then of each stage.
        """
        for result in read_piece(piece, self.columns, null_images=takes_null_images(self.stages)):
            counts[0].add(result)
            table = result.kept
            for stage, count in zip(self.stages, counts[1:], strict=True):
                result = run_stage(stage, table)  # noqa: PLW2901 - one after another
                count.add(result)
                table = result.kept
            yield table


def index_tar(path: Path, columns: PairColumns) -> None:
    """Write the index that training reads a tar by; training makes it if it is absent or older."""
    from model_export.data.tar import TarPairs  # brings what decodes images

    TarPairs(path, columns)


def write_tables(path: Path, tables: Iterator[pa.Table]) -> int:
    """Write tables of one schema, at least one, as Parquet with row groups of limited bytes; return the rows."""
    first = next(tables)
    schema, rows = first.schema, 0
    with pq.ParquetWriter(
        path,
        schema,
        compression={name: "none" if name == IMAGE else "zstd" for name in schema.names},
        use_dictionary=[name for name in schema.names if name not in {ID, IMAGE}],
        write_statistics=[name for name in schema.names if name != IMAGE],
    ) as writer:
        for group in _row_groups(first, tables):
            rows += group.num_rows
            writer.write_table(group, row_group_size=group.num_rows)
    return rows


def _row_groups(first: pa.Table, others: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the same rows in tables of about `_GROUP_BYTES`, or `_GROUP_ROWS` rows."""
    waiting, size, rows = list[pa.Table](), 0, 0
    for table in _chained(first, others):
        step = max(1, min(_GROUP_ROWS, table.num_rows * _GROUP_BYTES // max(1, table.nbytes)))
        for start in range(0, table.num_rows, step):
            part = table.slice(start, step)
            waiting.append(part)
            size += part.nbytes
            rows += part.num_rows
            if size >= _GROUP_BYTES or rows >= _GROUP_ROWS:
                yield pa.concat_tables(waiting)
                waiting, size, rows = [], 0, 0
    if rows:
        yield pa.concat_tables(waiting)


def _chained(first: pa.Table, others: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    for table in others:
        yield table.cast(first.schema)
