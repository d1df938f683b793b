"""Open the data files of a recipe, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model_export.data.pairs import PairFile
from model_export.data.parquet import PairColumns, ParquetPairs
from model_export.data.patterns import expand_ranges
from model_export.data.tar import TarPairs
from model_export.errors import DataError

_KINDS = (".parquet", ".tar")


def open_pairs(names: Sequence[str], columns: PairColumns) -> list[PairFile]:
    """Open Parquet and tar files, in order.

    Args:
        names: files, names of several files such as ``{000..009}.tar``, or folders of one kind of file.
        columns: names of the Parquet columns, and of the keys of JSON members.

    Raises:
        DataError: a file does not exist or cannot be used.
    """
    # Expanding all names before opening the first file reports a wrong name at once.
    paths = [path for name in names for each in _expanded(name) for path in _files(Path(each))]
    return [TarPairs(path, columns) if path.suffix == ".tar" else ParquetPairs(path, columns) for path in paths]


def _expanded(name: str) -> list[str]:
    return [name] if Path(name).exists() else expand_ranges(name)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    for kind in _KINDS:
        if files := sorted(file for file in path.iterdir() if file.suffix == kind and file.is_file()):
            return files
    raise DataError(f"{path}: holds no files named {' or '.join(_KINDS)}; name a folder of one of them, or the files")
