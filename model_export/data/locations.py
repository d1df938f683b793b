"""Open data files for reading at any position."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa

from model_export.errors import DataError, first_line

_FOOTER_TAIL = 8
"""Bytes at the end of a Parquet file: the footer's length, and the magic number."""


def open_file(path: Path) -> pa.NativeFile:
    """Open a file.

    Raises:
        DataError: it does not exist, or cannot be read.
    """
    try:
        return pa.OSFile(str(path))
    except FileNotFoundError as error:
        msg = f"{path}: no such file; name the data files of a recipe relative to the recipe's folder"
        raise DataError(msg) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from error


def footer_digest(file: pa.NativeFile) -> str:
    """Hash the size and the footer of a Parquet file: sha256 in hexadecimal.

    The footer has the place, size and mostly the extremes of each column of each row group.
    """
    size = file.size()
    digest = hashlib.sha256(str(size).encode())
    length = int.from_bytes(file.read_at(4, size - _FOOTER_TAIL), "little")
    digest.update(file.read_at(length + _FOOTER_TAIL, max(0, size - length - _FOOTER_TAIL)))
    return digest.hexdigest()
