"""Open paths as sources, by their names and folders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_export.data.patterns import expand_ranges
from model_export.errors import DataError
from model_export.evaluation.data.folder import FolderSource
from model_export.evaluation.data.samples import Source
from model_export.evaluation.data.webdataset import TarSource

_PARQUET: Final = (".parquet",)
_TAR: Final = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


@dataclass(frozen=True)
class SampleColumns:
    """Columns of Parquet files: encoded image, and class."""

    image: str = "image"
    label: str = "label"


def open_data(paths: Sequence[str], columns: SampleColumns | None = None) -> list[Source]:
    """Open every path, in order; read only the labels.

    Args:
        paths: Parquet files, tar files (a pattern such as ``{000..009}.tar`` stands for several), image folders, or
            folders of Parquet or tar files.
        columns: names of the columns of Parquet files.

    Raises:
        DataError: a path does not exist, its kind is unknown, or its labels cannot be read.
    """
    columns = columns or SampleColumns()
    files = [file for pattern in paths for path in expand(pattern) for file in _shards(path)]
    # Expanding all names before reading the first file reports a wrong name at once.
    return [_open(file, columns) for file in files]


def expand(pattern: str) -> list[Path]:
    """Expand ``{000..009}`` as a shell would; keep the path of an existing file.

    Raises:
        DataError: the range is empty or too long.
    """
    return [Path(name) for name in ([pattern] if Path(pattern).exists() else expand_ranges(pattern))]


def _shards(path: Path) -> list[Path]:
    """Return the path itself, or the files of a folder that holds Parquet or tar files and no folders."""
    if not path.exists():
        raise DataError(f"{path}: does not exist; name a file or a folder")
    if path.is_file():
        if not path.name.lower().endswith(_PARQUET + _TAR):
            raise DataError(f"{path}: is neither a folder nor a file named .parquet or .tar")
        return [path]
    files = [file for file in sorted(path.iterdir()) if file.is_file()]
    curated = (path / "dataset.json").is_file()  # has a folder of records beside its shards
    if not curated and any(file.is_dir() and not file.name.startswith(".") for file in path.iterdir()):
        return [path]
    for kind in (_PARQUET, _TAR):
        if shards := [file for file in files if file.name.lower().endswith(kind)]:
            return shards
    raise DataError(f"{path}: holds neither Parquet or tar files nor sub-folders of images, one for each class")


def _open(path: Path, columns: SampleColumns) -> Source:
    if path.is_dir():
        return FolderSource(path)
    if path.name.lower().endswith(_TAR):
        return TarSource(path)
    from model_export.evaluation.data.parquet import ParquetSource  # pyarrow comes with an extra

    return ParquetSource(path, image=columns.image, label=columns.label)
