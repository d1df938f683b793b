"""Interface of a stage of curation: a pure function on Arrow tables of pairs.

A pair is a row with these columns; other columns pass through unchanged:

* `ID`, string: stable, given by the data, or a hash of file and row (`row_ids`);
* `TEXT`, string: the caption; null or no UTF-8 where the data has none;
* `IMAGE`, binary: the encoded image; or `IMAGE_REF`, string: a name for it; or neither;
* `URL`, string: optional;
* `QUERIES`, list<int32>: ids of the queries that the text contains, ascending; added by matching.

Drivers cut the data into tables of limited bytes as they like. So a stage decides each row by itself: of two tables
joined, the result is their results joined.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from model_export.errors import CurationError

ID: Final = "id"
TEXT: Final = "text"
IMAGE: Final = "image"
IMAGE_REF: Final = "image_ref"
URL: Final = "url"
QUERIES: Final = "queries"


class StageResult(NamedTuple):
    """Rows of a table after a stage.

    Attributes:
        kept: rows that stay, in their order, with the columns that the stage adds.
        dropped: number of rows that were dropped, by reason, without zeros; rows in = rows kept + their sum.
        notes: counts of rows that stay though something was done to them, by remark.
    """

    kept: pa.Table
    dropped: dict[str, int]
    notes: Mapping[str, int] = MappingProxyType({})


class Stage(Protocol):
    """One step of curation. It can be pickled: worker processes get a copy each."""

    @property
    def name(self) -> str:
        """Return the name in reports, such as ``match``."""

    @property
    def digest(self) -> str:
        """Return a hash of everything that decides its output: version, settings, digests of files (`digest_of`)."""

    def run(self, table: pa.Table) -> StageResult:
        """Return the rows that stay. The same table gives the same result on every machine."""


def takes_null_images(stages: Sequence[Stage]) -> bool:
    """Return whether the first stage has its own answer to a row without an image; else reading drops such rows."""
    return bool(stages) and bool(getattr(stages[0], "takes_null_images", False))


def digest_of(name: str, version: int, settings: Mapping[str, Any]) -> str:
    """Hash the name, the version and the settings of a stage: sha256 in hexadecimal.

    Args:
        name: of the stage.
        version: counts the changes of its code that change its output.
        settings: values that JSON can hold.
    """
    content = json.dumps([name, version, settings], sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()


def split(table: pa.Table, reasons: pa.Array | pa.ChunkedArray) -> StageResult:
    """Keep the rows without a reason, and count the others.

    Args:
        table: of n rows.
        reasons: string ``[n]``: why a row is dropped; null for one that stays.
    """
    counts = pc.value_counts(pc.drop_null(reasons)).to_pylist()
    return StageResult(
        table.filter(pc.is_null(reasons)), dict(sorted((each["values"], each["counts"]) for each in counts))
    )


def run_stage(stage: Stage, table: pa.Table) -> StageResult:
    """Run a stage, and check its count of rows.

    Raises:
        CurationError: rows kept and rows dropped are not the rows that went in.
    """
    result = stage.run(table)
    out = result.kept.num_rows + sum(result.dropped.values())
    if out != table.num_rows:
        raise CurationError(
            f"stage {stage.name} took {table.num_rows} rows and accounts for {out}; correct the stage's counts"
        )
    return result


def row_ids(digest: str, first: int, rows: int) -> pa.Array:
    """Return ids of consecutive rows of a file without ids: string ``[rows]``, 32 hexadecimal digits each.

    Args:
        digest: of the file's content; so an id depends on neither its name nor its place.
        first: number of the first row within the file.
        rows: number of rows.
    """
    start = hashlib.sha256(digest.encode())
    ids = []
    for row in range(first, first + rows):
        each = start.copy()
        each.update(row.to_bytes(8, "little"))
        ids.append(each.hexdigest()[:32])
    return pa.array(ids, pa.string())
