"""Open the data files of a recipe, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from model_export.data.pairs import PairFile
from model_export.data.parquet import PairColumns, ParquetPairs
from model_export.data.patterns import file_names, is_tar
from model_export.data.tar import TarPairs

_AT_ONCE = 16
"""Files that are opened at the same time: a remote one mostly waits."""


def open_pairs(names: Sequence[str], columns: PairColumns) -> list[PairFile]:
    """Open Parquet and tar files, in order.

    Args:
        names: files by path or URL, names of several files such as ``{000..009}.tar``, or folders of one kind of file.
        columns: names of the Parquet columns, and of the keys of JSON members.

    Raises:
        DataError: a file does not exist or cannot be used.
    """
    # Expanding all names before opening the first file reports a wrong name at once.
    files = file_names(names)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(lambda file: _open(file, columns), files))


def _open(name: str, columns: PairColumns) -> PairFile:
    return TarPairs(name, columns) if is_tar(name) else ParquetPairs(name, columns)
