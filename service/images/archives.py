"""Images out of a tar, tar.gz or zip that a client sends: never unpacked to disk, and counted as it is read.

What an archive says of itself is not believed: every limit holds for the bytes that really come out. Only regular files
are read; names are echoed and never used as paths; an archive inside an archive is a file that is no image.

A tar is read in one direction, so it may still be arriving. All here blocks, so none of it is for an event loop.
"""

import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final, Self, cast

from service.errors import AnyclassError, InvalidImage, MalformedRequest, PayloadTooLarge

MAX_NAME_CHARS: Final = 200

_CHUNK: Final = 2**18
_HEADER_BYTES: Final = 2**20
"""Most that a tar may have between two files: a long name takes some, and a lie about its length no more."""
_OTHER_ENTRIES: Final = 1_000
"""Directories, links and the like that an archive may have beyond one for each file."""
_DIRECTORY_ENTRY_BYTES: Final = 256
"""What an entry of a zip's directory takes, with a long name and all that usually belongs to it."""
_TAR_ENDS: Final = (tarfile.EOFHeaderError, tarfile.EmptyHeaderError)  # type: ignore[attr-defined]
_GZIP: Final = b"\x1f\x8b"
_ZIP: Final = (b"PK\x03\x04", b"PK\x05\x06")
_READABLE: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED: Final = 0x1

_NOT_AN_ARCHIVE: Final = "The body is not a tar, tar.gz or zip archive, or it is damaged."


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What an archive may hold: files, bytes of each, and bytes of all, unpacked."""

    max_images: int
    max_image_bytes: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: its name, shortened and valid UTF-8, and its bytes, or what is wrong with it."""

    name: str
    image: bytes | AnyclassError


class _Member(tarfile.TarInfo):
    """A member whose damaged header is an error; `tarfile` takes it for the end, and the rest would be missing."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """See `tarfile.TarInfo`."""
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as exc:
            if isinstance(exc, _TAR_ENDS):
                raise
            raise MalformedRequest(_NOT_AN_ARCHIVE) from exc


class _Metered(io.RawIOBase):
    """Counts the bytes that come out of a stream, against the whole and against what is expected next."""

    def __init__(self, stream: IO[bytes], limits: ArchiveLimits) -> None:
        self._stream = stream
        self._budget = _Budget(limits.max_bytes)
        self.header_bytes = _HEADER_BYTES
        self.in_header = True

    def readable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, as `tarfile` asks for them."""
        data = self._stream.read(min(size if size >= 0 else _CHUNK, _CHUNK))
        self._budget.spend(len(data))
        if self.in_header:
            self.header_bytes -= len(data)
            if self.header_bytes < 0:
                raise MalformedRequest(_NOT_AN_ARCHIVE)
        return data


def too_large(limit: int) -> PayloadTooLarge:
    """The refusal of an archive that has, or unpacks to, more than `limit` bytes."""
    return PayloadTooLarge(f"The archive has, or unpacks to, more than {limit} bytes, the limit of this server.")


def entries(stream: IO[bytes], limits: ArchiveLimits) -> Iterator[Entry]:
    """The regular files of an archive in their order. What kind it is, its first bytes tell.

    A file that cannot be read has its error and fails no other.

    Raises:
        MalformedRequest: it is not an archive, is damaged, or has no file.
        PayloadTooLarge: more files or bytes than the limits allow.
    """
    try:
        yield from _counted(_files(stream, limits), limits.max_images)
    except AnyclassError:
        raise
    except Exception as exc:  # damaged archives raise anything from struct.error to RecursionError
        raise MalformedRequest(_NOT_AN_ARCHIVE) from exc


def _counted(files: Iterator[Entry], limit: int) -> Iterator[Entry]:
    count = 0
    for entry in files:
        count += 1
        if count > limit:
            raise PayloadTooLarge(f"The archive has more than {limit} files; send them in parts.")
        yield entry
    if not count:
        raise MalformedRequest("There is no file in the archive.")


def _files(stream: IO[bytes], limits: ArchiveLimits) -> Iterator[Entry]:
    start = _read_up_to(stream, 4)
    stream.seek(0)
    if start in _ZIP:
        return _zip_entries(stream, limits)
    return _tar_entries(stream, limits, compressed=start.startswith(_GZIP))


def _tar_entries(stream: IO[bytes], limits: ArchiveLimits, *, compressed: bool) -> Iterator[Entry]:
    unpacked = cast("IO[bytes]", gzip.GzipFile(fileobj=stream, mode="rb")) if compressed else stream
    metered = _Metered(unpacked, limits)
    others = 0
    with tarfile.open(fileobj=cast("IO[bytes]", metered), mode="r|", tarinfo=_Member) as archive:
        while True:
            # `next` reads whole headers into memory, whatever length they claim; so it gets only so much.
            metered.in_header, metered.header_bytes = True, _HEADER_BYTES
            member = archive.next()
            if member is None:
                return
            archive.members.clear()  # type: ignore[attr-defined]  # or every header would stay in memory
            metered.in_header = False
            if not member.isreg():
                others += 1
                _check_others(others, limits)
                continue
            yield _tar_entry(archive, member, limits)


def _tar_entry(archive: tarfile.TarFile, member: tarfile.TarInfo, limits: ArchiveLimits) -> Entry:
    name = shown(member.name)
    if member.issparse():
        return Entry(name, InvalidImage("The file is stored in the archive with holes, which is not read here."))
    content = archive.extractfile(member)
    assert content is not None  # noqa: S101 - it is a regular file
    with content:
        data = _read_up_to(content, limits.max_image_bytes + 1)
        if len(data) <= limits.max_image_bytes:
            return Entry(name, data)
        while content.read(_CHUNK):
            pass  # its end is counted too, and the next file comes after it
    return Entry(name, _image_too_large(limits))


def _zip_entries(stream: IO[bytes], limits: ArchiveLimits) -> Iterator[Entry]:
    guarded = _BoundedReads(stream, _DIRECTORY_ENTRY_BYTES * (limits.max_images + _OTHER_ENTRIES))
    others, budget = 0, _Budget(limits.max_bytes)
    with zipfile.ZipFile(cast("IO[bytes]", guarded)) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir() or kind not in (0, stat.S_IFREG):
                others += 1
                _check_others(others, limits)
                continue
            yield _zip_entry(archive, info, limits, budget)


def _zip_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limits: ArchiveLimits, budget: "_Budget") -> Entry:
    name = shown(info.filename)
    if info.flag_bits & _ENCRYPTED:
        return Entry(name, InvalidImage("The file is encrypted."))
    if info.compress_type not in _READABLE:
        return Entry(name, InvalidImage("The file is compressed in a way that is not read here; use deflate."))
    try:
        with archive.open(info) as content:
            data = _read_up_to(content, limits.max_image_bytes + 1, budget)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
        return Entry(name, InvalidImage("The file is damaged in the archive."))
    return Entry(name, data if len(data) <= limits.max_image_bytes else _image_too_large(limits))


class _Budget:
    """Counts unpacked bytes, those of files that turn out to be damaged or too large among them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = limit

    def spend(self, count: int) -> None:
        """Raise `PayloadTooLarge` where it is too much."""
        self._left -= count
        if self._left < 0:
            raise too_large(self._limit)


class _BoundedReads(io.RawIOBase):
    """Refuses to read more at once than a directory of the allowed length has: `zipfile` believes the length given."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream = stream
        self._most = max(most, 2 * _CHUNK)

    def readable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def seekable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """See `io.IOBase`; an offset before the beginning is the archive's mistake."""
        if whence == io.SEEK_SET and offset < 0:
            raise zipfile.BadZipFile
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._stream.tell()

    def read(self, size: int = -1) -> bytes:
        """Exactly `size` bytes, or up to the end."""
        data = _read_up_to(self._stream, min(size if size >= 0 else self._most + 1, self._most + 1))
        if len(data) > self._most:
            raise PayloadTooLarge("The archive's directory has more entries than may be sent at once.")
        return data


def shown(name: str) -> str:
    """An entry's name as it is echoed: valid UTF-8, and not longer than `MAX_NAME_CHARS`."""
    safe = name.encode("utf-8", "replace").decode("utf-8")
    return safe if len(safe) <= MAX_NAME_CHARS else safe[: MAX_NAME_CHARS - 1] + "…"


def _read_up_to(stream: IO[bytes], size: int, budget: _Budget | None = None) -> bytes:
    """Read until there are `size` bytes or the end; memory grows with what comes, not with what is asked for."""
    data = bytearray()
    while len(data) < size and (piece := stream.read(min(size - len(data), _CHUNK))):
        data += piece
        if budget is not None:
            budget.spend(len(piece))
    return bytes(data)


def _check_others(count: int, limits: ArchiveLimits) -> None:
    if count > limits.max_images + _OTHER_ENTRIES:
        raise PayloadTooLarge("The archive has too many entries that are not files.")


def _image_too_large(limits: ArchiveLimits) -> PayloadTooLarge:
    return PayloadTooLarge(f"The file has more than {limits.max_image_bytes} bytes, the limit for one image.")
