"""Reads the records of a zip file that torch wrote, within the sizes that the file states.

torch stores tensors uncompressed, so no record can be larger than the file that holds it. A compressed record is
refused: it could grow without bound when it is read.
"""

import re
import struct
import zipfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import Self

from model_export.errors import SourceError

MAX_PICKLE = 16 << 20
"""Bytes. The largest published model's is below a megabyte: it holds names and shapes, but no numbers."""

_CHUNK = 4 << 20

_PICKLE = re.compile(r"(?P<root>[^/]+)/data\.pkl")

_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, EOFError, ValueError, OSError)
"""Exceptions of `zipfile` for a corrupt, truncated, encrypted, exotic or unreadable file."""


class ZipRecords:
    """An open zip file of torch's: one folder with ``data.pkl``, and one record for each storage."""

    def __init__(self, path: Path) -> None:
        """Open the file and read its table of records.

        Raises:
            SourceError: torch did not write the file, or it is truncated.
        """
        self._path = path
        try:
            self._size = path.stat().st_size
            self._zip = zipfile.ZipFile(path)
        except _ERRORS as exc:
            raise SourceError(f"{path}: is truncated or corrupt ({exc}); download it again") from exc
        roots = [found["root"] for found in map(_PICKLE.fullmatch, self._zip.namelist()) if found]
        if len(roots) != 1:
            self._zip.close()
            raise SourceError(f"{path}: is a zip file, but not one that torch wrote")
        self._root = roots[0]
        self._infos = {info.filename.removeprefix(f"{self._root}/"): info for info in self._zip.infolist()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()

    def __contains__(self, name: str) -> bool:
        return name in self._infos

    @property
    def is_script(self) -> bool:
        """Whether the file holds a TorchScript module, written by ``torch.jit.save``."""
        return "constants.pkl" in self

    def require_stored(self) -> None:
        """Check that reading every record takes no more memory than the file's size.

        Raises:
            SourceError: a record is compressed, or records overlap.
        """
        for info in self._infos.values():
            self._require_stored(info)
        if sum(info.file_size for info in self._zip.infolist()) > self._size:
            raise SourceError(f"{self._path}: its records claim more bytes than the file has; download it again")

    def size(self, name: str) -> int:
        """Return the size of a record in bytes.

        Raises:
            SourceError: the file has no such record.
        """
        return self._info(name).file_size

    def read(self, name: str, *, limit: int | None = None) -> bytearray:
        """Read a record and check its checksum.

        Args:
            name: inside the archive's one folder, such as ``data/0``.
            limit: maximum size of the record in bytes; by default the file's.

        Raises:
            SourceError: the record is missing, compressed, too large or damaged.
        """
        info = self._info(name)
        self._require_stored(info)
        if info.file_size > (self._size if limit is None else limit):
            raise SourceError(f"{self._path}: its record {name} claims {info.file_size} bytes, which is too much")
        content = bytearray()
        try:
            with self._zip.open(info) as stream:
                while chunk := stream.read(_CHUNK):  # the last read compares the checksum
                    content += chunk
        except _ERRORS as exc:
            raise SourceError(f"{self._path}: its record {name} is damaged ({exc}); download it again") from exc
        if len(content) != info.file_size:
            raise SourceError(f"{self._path}: its record {name} is truncated; download it again")
        return content

    def _info(self, name: str) -> zipfile.ZipInfo:
        try:
            return self._infos[name]
        except KeyError as exc:
            raise SourceError(f"{self._path}: lacks its record {name}; download it again") from exc

    def _require_stored(self, info: zipfile.ZipInfo) -> None:
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise SourceError(f"{self._path}: its record {info.filename} is compressed; torch never writes that")
