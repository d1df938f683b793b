"""Names of several files in one: ranges in braces, and folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from model_export.data.locations import is_url
from model_export.errors import DataError

_RANGE: Final = re.compile(r"\{([0-9]{1,9})\.\.([0-9]{1,9})\}")
_MOST_FILES: Final = 100_000
_KINDS: Final = (".parquet", ".tar")


def expand_ranges(pattern: str) -> list[str]:
    """Expand ``{000..009}`` as a shell would.

    Raises:
        DataError: the range is empty or too long.
    """
    found = _RANGE.search(pattern)
    if found is None:
        return [pattern]
    first, last = (int(bound) for bound in found.groups())
    if not 0 <= last - first < _MOST_FILES:
        raise DataError(f"{pattern}: {found[0]} must count upwards, to {_MOST_FILES:,} files at most")
    width = len(found[1])
    names = (f"{pattern[: found.start()]}{i:0{width}d}{pattern[found.end() :]}" for i in range(first, last + 1))
    return [each for name in names for each in expand_ranges(name)]


def file_names(names: Sequence[str]) -> list[str]:
    """Return the files that names stand for, as `opening.open_pairs` takes them, in order.

    Raises:
        DataError: a range or a folder cannot be used.
    """
    return [file for name in names for each in expanded(name) for file in _files(each)]


def is_tar(name: str) -> bool:
    """Return whether a file is a tar by its name."""
    return PurePosixPath(name.partition("?")[0] if is_url(name) else name).suffix == ".tar"


def expanded(name: str) -> list[str]:
    """Expand the ranges of a name, unless a file or a folder is named so. Raises DataError; see `expand_ranges`."""
    return [name] if not is_url(name) and Path(name).exists() else expand_ranges(name)


def _files(name: str) -> list[str]:
    if is_url(name) or not Path(name).is_dir():
        return [name]
    if files := files_in(name):
        return files
    raise DataError(f"{name}: holds no files named {' or '.join(_KINDS)}; name a folder of one of them, or the files")


def files_in(folder: str) -> list[str]:
    """Return the Parquet files of a folder, or else its tars, in order."""
    for kind in _KINDS:
        if files := sorted(file for file in Path(folder).iterdir() if file.suffix == kind and file.is_file()):
            return list(map(str, files))
    return []
