"""Open data files, by path or URL, for reading at any position.

``s3://`` and ``gs://`` are opened by pyarrow, which takes credentials and endpoints from the usual places; every other
scheme (``https://``, ``hf://``, …) by fsspec.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.fs

from model_export.errors import DataError, ServerError, first_line

_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*)://")
_BY_PYARROW: Final = frozenset({"s3", "gs"})
_FOOTER_TAIL: Final = 8
"""Bytes at the end of a Parquet file: the footer's length, and the magic number."""
_MARKS: Final = ("ETag", "etag", "Last-Modified", "mtime", "LastModified", "last_modified", "md5Hash")
"""Fields of a file's description by fsspec that change with its content; each scheme has some."""

_REFUSALS: Final = frozenset({401, 403, 410})
"""HTTP statuses of a server that will not answer otherwise later."""

PathOrUrl = str | Path


class Description(NamedTuple):
    """Size of a file in bytes, and a text that changes with its content if the store has one."""

    size: int
    mark: str


def is_url(name: PathOrUrl) -> bool:
    """Return whether a name is a URL."""
    return _SCHEME.match(str(name)) is not None


def open_file(name: PathOrUrl) -> pa.NativeFile:
    """Open a file.

    Raises:
        DataError: it does not exist, or cannot be read.
    """
    with refusing(name):
        if not is_url(name):
            return pa.OSFile(str(name))
        if _by_pyarrow(name):
            return _bucket(str(name)).open_input_file(_key(str(name)))
        files, path = _by_fsspec(str(name))
        # Without a cache a read fetches the bytes that were asked for; readers here ask for large pieces.
        return pa.PythonFile(_Translated(files.open(path, "rb", cache_type="none")), mode="r")


def describe(name: PathOrUrl) -> Description:
    """Return a file's size and mark.

    Raises:
        DataError: it does not exist, or cannot be read.
    """
    with refusing(name):
        if not is_url(name):
            stat = Path(name).stat()
            return Description(stat.st_size, str(stat.st_mtime_ns))
        if _by_pyarrow(name):
            info = _bucket(str(name)).get_file_info(_key(str(name)))
            if not info.is_file:
                raise FileNotFoundError
            return Description(info.size, str(info.mtime_ns))
        files, path = _by_fsspec(str(name))
        fields = files.info(path)
        if not fields.get("size"):
            raise OSError("its size is unknown")
        return Description(int(fields["size"]), repr([str(fields[key]) for key in _MARKS if key in fields]))


@contextmanager
def refusing(name: PathOrUrl) -> Iterator[None]:
    """Turn any failure of this block to open or read a file into one line that names it.

    Raises:
        ServerError: a server does not answer, or fails to.
        DataError: anything else, which would fail again.
    """
    try:
        yield
    except FileNotFoundError as error:
        # fsspec says so of any failure to describe a file; the cause has the answer's status.
        cause = error.__cause__
        if isinstance(cause, Exception) and (status := getattr(cause, "status", None)) != 404:
            failure = DataError if status in _REFUSALS else ServerError
            raise failure(f"{name}: cannot be read ({first_line(cause)})") from error
        hint = "" if is_url(name) else "; name the data files of a recipe relative to the recipe's folder"
        raise DataError(f"{name}: no such file{hint}") from error
    except ImportError as error:
        raise DataError(f"{name}: cannot be opened ({first_line(error)})") from error
    except (OSError, ValueError, pa.ArrowException) as error:
        lasts = not is_url(name) or not isinstance(error, OSError) or _is_refusal(error)
        raise (DataError if lasts else ServerError)(f"{name}: cannot be read ({_reason(error)})") from error
    except Exception as error:
        # The stores behind fsspec raise exceptions of their own clients.
        if not is_url(name):
            raise
        raise ServerError(f"{name}: cannot be read ({_reason(error)})") from error


def footer_digest(file: pa.NativeFile) -> str:
    """Hash the size and the footer of a Parquet file: sha256 in hexadecimal.

    The footer has the place, size and mostly the extremes of each column of each row group.
    """
    size = file.size()
    digest = hashlib.sha256(str(size).encode())
    length = int.from_bytes(file.read_at(4, size - _FOOTER_TAIL), "little")
    digest.update(file.read_at(length + _FOOTER_TAIL, max(0, size - length - _FOOTER_TAIL)))
    return digest.hexdigest()


def _by_pyarrow(name: PathOrUrl) -> bool:
    found = _SCHEME.match(str(name))
    return found is not None and found[1] in _BY_PYARROW


def _by_fsspec(url: str) -> tuple[Any, str]:
    import fsspec  # comes with the extra `train`; paths do not need it

    files, path = fsspec.url_to_fs(url)
    return files, str(path)


def _bucket(url: str) -> Any:  # noqa: ANN401 - pyarrow has no types
    scheme, _, rest = url.partition("://")
    bucket, _, tail = rest.partition("/")
    _, mark, options = tail.partition("?")
    return _file_system(f"{scheme}://{bucket}/{mark}{options}")


@cache
def _file_system(url: str) -> Any:  # noqa: ANN401 - pyarrow has no types
    """Open a bucket, once: the first request asks for its region."""
    return pyarrow.fs.FileSystem.from_uri(url)[0]


def _key(url: str) -> str:
    return url.partition("://")[2].partition("?")[0]


def _reason(error: Exception) -> str:
    text = first_line(error)
    if _is_refusal(error):
        return f"access is denied; set credentials, for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: {text}"
    return text


def _is_refusal(error: Exception) -> bool:
    """Return whether a store of pyarrow denied access."""
    text = first_line(error)
    return "ACCESS_DENIED" in text or "HTTP status 403" in text


class _Translated(io.RawIOBase):
    """A file of fsspec whose failures are OSErrors, whatever the store's client raises."""

    def __init__(self, file: Any) -> None:  # noqa: ANN401 - fsspec has no types
        self._file = file

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def seekable(self) -> bool:
        """Return that any position can be read."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position."""
        position: int = self._file.seek(offset, whence)
        return position

    def tell(self) -> int:
        """Return the position."""
        position: int = self._file.tell()
        return position

    def read(self, size: int = -1) -> bytes:
        """Read bytes at the position."""
        try:
            content: bytes = self._file.read(size)
        except OSError:
            raise
        except Exception as error:
            raise OSError(first_line(error)) from error
        return content

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()
