"""Parquet output. It needs `pyarrow`, which an installation for serving does not include."""

import sys
from pathlib import Path
from typing import IO, Any, Final

from service.cli.classify.outcomes import ImageOutcome
from service.cli.classify.rows import COLUMNS, rows
from service.cli.inputs import InputError
from service.installation import how_to_add

_GROUP_ROWS: Final = 65_536
"""Rows of a row group, held in memory until it is written."""


class ParquetOutput:
    """Writes to a file, which the first write opens, or to the standard output."""

    def __init__(self, output: Path | None) -> None:
        """Raises `InputError` if pyarrow is not installed."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as exc:
            raise InputError(
                f"Parquet needs pyarrow (extra parquet), which is not installed: {how_to_add('parquet')}"
            ) from exc
        self._arrow: Any = pa
        self._parquet: Any = pq
        types = (pa.string(), pa.int32(), pa.string(), pa.float32(), *[pa.string()] * 2)
        self._schema = pa.schema(list(zip(COLUMNS, types, strict=True)))
        self._output = output
        self._file: IO[bytes] | None = None
        self._writer: Any = None
        self._rows: list[tuple[object, ...]] = []

    def write(self, outcome: ImageOutcome) -> None:
        """See `Output`."""
        self._rows += rows(outcome)
        if len(self._rows) >= _GROUP_ROWS:
            self._flush()

    def close(self) -> None:
        """Write the last rows and the footer."""
        if self._rows:
            self._flush()
        if self._writer is not None:
            self._writer.close()
        if self._file is not None:
            if self._output is None:
                self._file.flush()
            else:
                self._file.close()

    def _flush(self) -> None:
        if self._writer is None:
            self._file = sys.stdout.buffer if self._output is None else self._output.open("wb")
            self._writer = self._parquet.ParquetWriter(self._file, self._schema)
        columns = [
            self._arrow.array(values, kind)
            for values, kind in zip(zip(*self._rows, strict=True), self._schema.types, strict=True)
        ]
        self._writer.write_table(self._arrow.table(columns, schema=self._schema))
        self._rows.clear()
