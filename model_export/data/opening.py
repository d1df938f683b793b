"""Open the data files of a recipe, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from model_export.data.locations import is_url
from model_export.data.pairs import PairFile
from model_export.data.parquet import PairColumns, ParquetPairs
from model_export.data.patterns import expand_ranges
from model_export.data.tar import TarPairs
from model_export.errors import DataError

_KINDS = (".parquet", ".tar")
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


def file_names(names: Sequence[str]) -> list[str]:
    """Return the files that names stand for, as `open_pairs` takes them, in order.

    Raises:
        DataError: a range or a folder cannot be used.
    """
    return [file for name in names for each in _expanded(name) for file in _files(each)]


def is_tar(name: str) -> bool:
    """Return whether a file is a tar by its name."""
    return PurePosixPath(name.partition("?")[0] if is_url(name) else name).suffix == ".tar"


def _open(name: str, columns: PairColumns) -> PairFile:
    return TarPairs(name, columns) if is_tar(name) else ParquetPairs(name, columns)


def _expanded(name: str) -> list[str]:
    return [name] if not is_url(name) and Path(name).exists() else expand_ranges(name)


def _files(name: str) -> list[str]:
    if is_url(name) or not Path(name).is_dir():
        return [name]
    for kind in _KINDS:
        if files := sorted(file for file in Path(name).iterdir() if file.suffix == kind and file.is_file()):
            return list(map(str, files))
    raise DataError(f"{name}: holds no files named {' or '.join(_KINDS)}; name a folder of one of them, or the files")
