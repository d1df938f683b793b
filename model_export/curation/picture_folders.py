"""Read a folder of pictures as one file of the data: a row for each picture in it and below it, by path.

Names that begin with a dot, links to folders, and files that are no pictures by their suffix are passed over. A link
that leads nowhere is a row without a picture.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from model_export.curation.stage import ID, IMAGE
from model_export.data.locations import is_url, refusing
from model_export.data.pairs import Rows
from model_export.errors import DataError
from model_export.evaluation.data.samples import IMAGE_SUFFIXES

GROUP: Final = 256
"""Pictures of a row group."""
_THREADS: Final = 8
_HASHED_AT_ONCE: Final = 1_024
_TABLE_BYTES: Final = 64 * 2**20
_NOWHERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""Errors of a link that leads nowhere."""
_NO_CONTENT: Final = "-"


class PictureGroups(NamedTuple):
    """Row groups of a folder.

    Attributes:
        rows: of each group, int64.
        sizes: bytes of each group, int64.
        paths: of all pictures, from the folder, in order.
    """

    rows: Rows
    sizes: Rows
    paths: tuple[str, ...]


class _Picture(NamedTuple):
    """A picture: its path from the folder, with slashes, its bytes and its time; zeros if it is a link to nowhere."""

    path: str
    size: int
    time_ns: int


def is_picture_folder(name: str) -> bool:
    """Return whether this name of a file of the data is one of a folder."""
    return not is_url(name) and Path(name).is_dir()


def holds_pictures(folder: str) -> bool:
    """Return whether a folder has a picture in it or below it. Raises DataError if it cannot be read."""
    with refusing(folder):
        return next(_found(folder), None) is not None


def folder_mark(folder: str) -> tuple[int, str]:
    """Return the bytes of all pictures, and a mark that changes with any of their names, sizes and times.

    Raises:
        DataError: the folder cannot be read.
    """
    mark, total = hashlib.sha256(), 0
    for path, size, time_ns in _pictures(folder):
        total += size
        mark.update(os.fsencode(f"{path}\0{size} {time_ns}\n"))
    return total, mark.hexdigest()


def folder_digest(folder: str) -> str:
    """Return the sha256 of the sorted paths of all pictures, each with the sha256 of its bytes, in hexadecimal.

    Raises:
        DataError: the folder or a picture cannot be read.
    """
    digest, paths = hashlib.sha256(), [picture.path for picture in _pictures(folder)]
    with ThreadPoolExecutor(_THREADS) as threads:
        for start in range(0, len(paths), _HASHED_AT_ONCE):
            some = paths[start : start + _HASHED_AT_ONCE]
            files = [_join(folder, path) for path in some]
            for path, content in zip(some, threads.map(_sha256, files), strict=True):
                digest.update(os.fsencode(f"{path}\0{content}\n"))
    return digest.hexdigest()


def paths_digest(paths: Sequence[str]) -> str:
    """Return the sha256 of paths in hexadecimal."""
    return hashlib.sha256(os.fsencode("\0".join(paths))).hexdigest()


def picture_groups(folder: str) -> PictureGroups:
    """Cut the pictures of a folder into row groups. Raises DataError if the folder cannot be read."""
    found = _pictures(folder)
    sizes = np.array([min(picture.size, _most()) for picture in found], dtype=np.int64)
    starts = np.arange(0, len(found), GROUP)
    rows = np.minimum(len(found) - starts, GROUP)
    return PictureGroups(
        rows, np.add.reduceat(sizes, starts) if found else sizes, tuple(picture.path for picture in found)
    )


def picture_tables(folder: str, paths: Sequence[str], batch_rows: int) -> Iterator[pa.Table]:
    """Yield tables of ids, which are paths, and encoded pictures, in limited numbers and bytes.

    Args:
        folder: of the pictures.
        paths: of the pictures, from the folder.
        batch_rows: most of them in a table.

    Raises:
        DataError: a picture was taken away since it was found.
    """
    start, size = 0, 0
    pictures: list[bytes | None] = []
    for picture in _contents(folder, paths):
        pictures.append(picture)
        size += len(picture or b"")
        if len(pictures) == batch_rows or size >= _TABLE_BYTES:
            yield _table(paths[start : start + len(pictures)], pictures)
            start, size, pictures = start + len(pictures), 0, []
    if pictures:
        yield _table(paths[start:], pictures)


def passed_over(folder: str) -> Counter[str]:
    """Count the files of a folder that are no pictures by their suffix, by that suffix, and links to folders.

    Raises:
        DataError: the folder cannot be read.
    """
    found = Counter[str]()
    with refusing(folder):
        for _, entry in _files(folder, ""):
            if entry.is_symlink() and Path(entry.path).is_dir():
                found["links to folders"] += 1
            elif not _is_picture(entry.name):
                found[_suffix(entry.name) or "no suffix"] += 1
    return found


def _table(paths: Sequence[str], pictures: Sequence[bytes | None]) -> pa.Table:
    ids = [os.fsencode(path).decode("utf-8", "backslashreplace") for path in paths]
    return pa.table({ID: pa.array(ids, pa.string()), IMAGE: pa.array(pictures, pa.binary())})


def _pictures(folder: str) -> list[_Picture]:
    """Return the pictures of a folder, sorted by path. Raises DataError if it cannot be read."""
    with refusing(folder):
        return sorted(_found(folder))


def _found(folder: str) -> Iterator[_Picture]:
    """Yield the pictures of a folder in any order; what is neither a file nor a link to one or to nowhere is none."""
    for path, entry in _files(folder, ""):
        if not _is_picture(entry.name):
            continue
        try:
            status = entry.stat()
        except OSError as error:
            if error.errno not in _NOWHERE or not entry.is_symlink():
                raise
            yield _Picture(path, 0, 0)
            continue
        if stat.S_ISREG(status.st_mode):
            yield _Picture(path, status.st_size, status.st_mtime_ns)


def _files(folder: str, below: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield what is no folder, in and below a folder: its path from the folder, and its entry."""
    with os.scandir(_join(folder, below)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from _files(folder, path)
            else:
                yield path, entry


def _is_picture(name: str) -> bool:
    return _suffix(name) in IMAGE_SUFFIXES


def _suffix(name: str) -> str:
    _, dot, suffix = name.rpartition(".")
    return suffix.lower() if dot else ""


def _contents(folder: str, paths: Sequence[str]) -> Iterator[bytes | None]:
    """Yield `_content` of each path; some are read at a time, because a network's disk answers late."""
    with ThreadPoolExecutor(_THREADS) as threads:
        for start in range(0, len(paths), _THREADS):
            yield from threads.map(_content, [_join(folder, path) for path in paths[start : start + _THREADS]])


def _content(file: str) -> bytes | None:
    """Return the bytes of a picture, one more than may be decoded at most; None for a link that leads nowhere."""
    try:
        if (stream := _opened(file)) is None:
            return None
        with stream:
            return stream.read(_most())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); restore it, and start again") from error


def _sha256(file: str) -> str:
    with refusing(file):
        if (stream := _opened(file)) is None:
            return _NO_CONTENT
        with stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def _opened(file: str) -> io.BufferedReader | None:
    """Open a picture; return None for a link that leads nowhere."""
    try:
        return Path(file).open("rb")
    except OSError as error:
        if error.errno in _NOWHERE and Path(file).is_symlink():
            return None
        raise


def _most() -> int:
    """Return the bytes of a picture that are read: one more than may be decoded."""
    from service.images.decoding import DEFAULT_LIMITS  # brings what decodes images

    return DEFAULT_LIMITS.max_bytes + 1


def _join(folder: str, path: str) -> str:
    return os.path.join(folder, path)  # noqa: PTH118 - a million Paths are slow to make
