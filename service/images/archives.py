"""Reads the images of an uploaded tar, tar.gz or zip, without unpacking it to disk.

An archive's own statements are not trusted: every limit applies to the bytes that really come out. Only regular files
are read; names are echoed and never used as paths; an archive inside an archive is a file that is not an image.

A tar is read in one direction, so it may still be arriving. Everything here blocks: call it off the event loop.
"""

import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Final, Self, cast

from service.errors import AnyclassError, InvalidImage, MalformedRequest, PayloadTooLarge

MAX_NAME_CHARS: Final = 200

_CHUNK: Final = 2**18
_HEADER_BYTES: Final = 2**20
"""Most header bytes between two files of a tar: enough for long names, and a limit for false lengths."""
_OTHER_ENTRIES: Final = 1_000
"""Directories, links and the like allowed in an archive beyond one for each file."""
_DIRECTORY_ENTRY_BYTES: Final = 256
"""Size of an entry in a zip's directory, with a long name and the usual extra fields."""
_MAX_RATIO: Final = 100
"""Unpacked bytes allowed for each byte of a compressed archive; encoded images hardly shrink, deflate reaches 1,000."""
_GZIP: Final = b"\x1f\x8b"
_ZIP: Final = (b"PK\x03\x04", b"PK\x05\x06")
_READABLE: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED: Final = 0x1

_NOT_AN_ARCHIVE: Final = "The body is not a tar, tar.gz or zip archive, or it is damaged."
_BROKEN_OFF: Final = "The archive breaks off: the two blocks of zeros that end a tar are missing. Send it whole."


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Limits on an archive: files, bytes of each, and unpacked bytes of all.

    Attributes:
        ratio_free_bytes: unpacked bytes to which the limit on the ratio does not apply; they take about half a second.
    """

    max_images: int
    max_image_bytes: int
    max_bytes: int
    ratio_free_bytes: int = 2**27


@dataclass(frozen=True, slots=True)
class ArchivedFile:
    """A file: its name, shortened and valid UTF-8, and its bytes or its error."""

    name: str
    image: bytes | AnyclassError


class _Member(tarfile.TarInfo):
    """A member whose damaged header is an error; for `tarfile` it is the end, which would lose the rest.

    So are a lone block of zeros, and an end without any: POSIX (pax, "ustar Interchange Format") ends a tar with two.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        """See `tarfile.TarInfo`."""
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError as exc:  # type: ignore[attr-defined]
            if cast("IO[bytes]", archive.fileobj).read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise MalformedRequest(_BROKEN_OFF) from exc
            raise
        except tarfile.HeaderError as exc:
            whole = archive.offset > 0 and isinstance(exc, tarfile.EmptyHeaderError)  # type: ignore[attr-defined]
            raise MalformedRequest(_BROKEN_OFF if whole else _NOT_AN_ARCHIVE) from exc


class _Metered(io.RawIOBase):
    """Counts the bytes read from a stream against the limit of the archive and, in headers, against their limit."""

    def __init__(self, stream: IO[bytes], budget: "_Budget") -> None:
        self._stream = stream
        self._budget = budget
        self.header_bytes = _HEADER_BYTES
        self.in_header = True

    def readable(self) -> bool:
        """See `io.IOBase`."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Read at most `size` bytes."""
        data = self._stream.read(min(size if size >= 0 else _CHUNK, _CHUNK))
        self._budget.spend(len(data))
        if self.in_header:
            self.header_bytes -= len(data)
            if self.header_bytes < 0:
                raise MalformedRequest(_NOT_AN_ARCHIVE)
        return data


def too_large(limit: int) -> PayloadTooLarge:
    """Return the error for an archive that has, or unpacks to, more than `limit` bytes."""
    return PayloadTooLarge(f"The archive has, or unpacks to, more than {limit} bytes, the limit of this server.")


def entries(stream: IO[bytes], limits: ArchiveLimits) -> Iterator[ArchivedFile]:
    """Yield the regular files of an archive in their order; its first bytes decide its format.

    A file that cannot be read carries its error and fails no other.

    Raises:
        MalformedRequest: not an archive, damaged, or without files.
        PayloadTooLarge: more files or bytes than the limits.
    """
    try:
        yield from _counted(_files(stream, limits), limits.max_images)
    except AnyclassError:
        raise
    except Exception as exc:  # damaged archives raise anything from struct.error to RecursionError
        raise MalformedRequest(_NOT_AN_ARCHIVE) from exc


def _counted(files: Iterator[ArchivedFile], limit: int) -> Iterator[ArchivedFile]:
    count = 0
    for entry in files:
        count += 1
        if count > limit:
            raise PayloadTooLarge(f"The archive has more than {limit} files; send them in parts.")
        yield entry
    if not count:
        raise MalformedRequest("The archive has no files; add at least one image.")


def _files(stream: IO[bytes], limits: ArchiveLimits) -> Iterator[ArchivedFile]:
    start = _read_up_to(stream, 4)
    stream.seek(0)
    if start in _ZIP:
        return _zip_entries(stream, limits)
    return _tar_entries(stream, limits, compressed=start.startswith(_GZIP))


def _tar_entries(stream: IO[bytes], limits: ArchiveLimits, *, compressed: bool) -> Iterator[ArchivedFile]:
    metered = _Metered(stream, _Budget(limits))
    if compressed:
        # Counted as packed bytes, gzip's buffer included.
        unpacked = gzip.GzipFile(fileobj=stream, mode="rb")
        metered = _Metered(cast("IO[bytes]", unpacked), _Budget(limits, stream.tell))
    others = 0
    with tarfile.open(fileobj=cast("IO[bytes]", metered), mode="r|", tarinfo=_Member) as archive:
        while True:
            # `next` reads whole headers into memory, whatever length they claim, so their bytes are limited.
            metered.in_header, metered.header_bytes = True, _HEADER_BYTES
            member = archive.next()
            if member is None:
                break
            archive.members.clear()  # type: ignore[attr-defined]  # otherwise every header stays in memory
            metered.in_header = False
            if not member.isreg():
                others += 1
                _check_others(others, limits)
                continue
            yield _tar_entry(archive, member, limits)
    if compressed:
        metered.in_header = False
        while metered.read():
            pass  # gzip's checksum comes last


def _tar_entry(archive: tarfile.TarFile, member: tarfile.TarInfo, limits: ArchiveLimits) -> ArchivedFile:
    name = shown(member.name)
    if member.issparse():
        return ArchivedFile(name, InvalidImage("The file is sparse, which is not supported; store it in full."))
    content = archive.extractfile(member)
    assert content is not None  # noqa: S101 - a regular file has content
    with content:
        data = _read_up_to(content, limits.max_image_bytes + 1)
        if len(data) <= limits.max_image_bytes:
            return ArchivedFile(name, data)
        while content.read(_CHUNK):
            pass  # the rest counts too, and the next file follows it
    return ArchivedFile(name, _image_too_large(limits))


def _zip_entries(stream: IO[bytes], limits: ArchiveLimits) -> Iterator[ArchivedFile]:
    guarded = _BoundedReads(stream, _DIRECTORY_ENTRY_BYTES * (limits.max_images + _OTHER_ENTRIES))
    size = stream.seek(0, io.SEEK_END)
    others, budget = 0, _Budget(limits, lambda: size)
    with zipfile.ZipFile(cast("IO[bytes]", guarded)) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if info.is_dir() or kind not in (0, stat.S_IFREG):
                others += 1
                _check_others(others, limits)
                continue
            yield _zip_entry(archive, info, limits, budget)


def _zip_entry(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, limits: ArchiveLimits, budget: "_Budget"
) -> ArchivedFile:
    name = shown(info.filename)
    if info.flag_bits & _ENCRYPTED:
        return ArchivedFile(name, InvalidImage("The file is encrypted."))
    if info.compress_type not in _READABLE:
        return ArchivedFile(name, InvalidImage("The file's compression is not supported; use deflate."))
    try:
        with archive.open(info) as content:
            data = _read_up_to(content, limits.max_image_bytes + 1, budget)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
        return ArchivedFile(name, InvalidImage("The file is damaged in the archive."))
    return ArchivedFile(name, data if len(data) <= limits.max_image_bytes else _image_too_large(limits))


class _Budget:
    """Counts unpacked bytes, including those of damaged and oversized files.

    With `packed`, the number of compressed bytes so far, their ratio has a limit too.
    """

    def __init__(self, limits: ArchiveLimits, packed: Callable[[], int] | None = None) -> None:
        self._limits = limits
        self._spent = 0
        self._packed = packed

    def spend(self, count: int) -> None:
        """Count bytes. Raises `PayloadTooLarge` above the limits."""
        self._spent += count
        if self._spent > self._limits.max_bytes:
            raise too_large(self._limits.max_bytes)
        if self._packed and self._spent > max(self._limits.ratio_free_bytes, _MAX_RATIO * self._packed()):
            raise PayloadTooLarge(
                f"The archive unpacks to more than {_MAX_RATIO} times its size. Send it without compression, or the "
                "images as PNG or JPEG."
            )


class _BoundedReads(io.RawIOBase):
    """Refuses reads longer than the largest allowed directory, because `zipfile` trusts the stated length."""

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
        """See `io.IOBase`; a negative offset comes from a damaged archive."""
        if whence == io.SEEK_SET and offset < 0:
            raise zipfile.BadZipFile
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """See `io.IOBase`."""
        return self._stream.tell()

    def read(self, size: int = -1) -> bytes:
        """Read exactly `size` bytes, or up to the end."""
        data = _read_up_to(self._stream, min(size if size >= 0 else self._most + 1, self._most + 1))
        if len(data) > self._most:
            raise PayloadTooLarge("The archive's directory has too many entries; send them in parts.")
        return data


def shown(name: str) -> str:
    """Return a file's name for an answer: valid UTF-8, at most `MAX_NAME_CHARS` long."""
    safe = name.encode("utf-8", "replace").decode("utf-8")
    return safe if len(safe) <= MAX_NAME_CHARS else safe[: MAX_NAME_CHARS - 1] + "…"


def _read_up_to(stream: IO[bytes], size: int, budget: _Budget | None = None) -> bytes:
    """Read up to `size` bytes or the end; memory grows with the bytes read, not with `size`."""
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
