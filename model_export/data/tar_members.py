"""Read the headers of a tar file in one pass.

Python's ``tarfile`` keeps or parses far more than a data set needs, and takes three times as long. Names and sizes of
the formats ustar, GNU and pax are read (POSIX.1-2017, pax, "Extended Description"); whatever is no regular file is
refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

BLOCK: Final = 512
_END: Final = bytes(BLOCK)
_LONG_NAME, _PAX, _FOLDER = b"Lx5"
_EXTENSIONS: Final = frozenset(b"LKxg")
_FILES: Final = frozenset(b"\x0007")
_KINDS: Final = {ord("1"): "a link", ord("2"): "a link", ord("3"): "a device", ord("4"): "a device", ord("6"): "a pipe"}
_COMPRESSED: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_LONGEST_EXTENSION: Final = 64 * 1024


class TarError(Exception):
    """A tar file cannot be used; the message follows the file's name."""


class Member(NamedTuple):
    """A regular file: its name, the place and size of its content in bytes, and its header."""

    name: bytes
    offset: int
    size: int
    header: bytes


def members(read_at: Callable[[int, int], bytes], size: int) -> Iterator[Member]:
    """Yield the regular files of a tar file, in order.

    Args:
        read_at: returns up to the given number of bytes from the given offset.
        size: of the tar file, in bytes.

    Raises:
        TarError: it is compressed, cut off, damaged, or holds an entry that is neither a file nor a folder.
    """
    offset = 0
    extended = _Extended()
    while (header := _header(read_at, offset)) is not None:
        kind, length, content = header[156], _number(header[124:136]), offset + BLOCK
        if kind in _EXTENSIONS:
            if length > _LONGEST_EXTENSION:
                raise _cut(offset)
            extended.take(kind, read_at(length, content), offset)
        else:
            name, length = extended.applied(header, length)
            if kind in _FILES:
                if content + length > size:
                    raise TarError(f"is cut off within {printable(name)}; copy the file again")
                yield Member(name, content, length, header)
            elif kind != _FOLDER:
                what = _KINDS.get(kind, "neither a file nor a folder")
                raise TarError(f"{printable(name)} is {what}; write the tar file with plain files only")
        offset = content + -(-length // BLOCK) * BLOCK


class _Extended:
    """Names and sizes that entries before a member state of it, because its header has no room for them."""

    def __init__(self) -> None:
        self._name: bytes | None = None
        self._records: dict[bytes, bytes] = {}

    def take(self, kind: int, content: bytes, offset: int) -> None:
        """Take the content of an entry at an offset."""
        if kind == _LONG_NAME:
            self._name = content.rstrip(b"\0")
        elif kind == _PAX:
            self._records = _pax_records(content, offset)

    def applied(self, header: bytes, length: int) -> tuple[bytes, int]:
        """Return the name and the size of the member with this header and the size in it, and forget them."""
        name = self._records.get(b"path", self._name) or name_of(header)
        size = self._records.get(b"size")
        self._name, self._records = None, {}
        return name, length if size is None else _number(size, base=10)


def _header(read_at: Callable[[int, int], bytes], offset: int) -> bytes | None:
    """Return the header at an offset, or None at the end of the file."""
    header = read_at(BLOCK, offset)
    if header == _END:
        if read_at(BLOCK, offset + BLOCK) != _END:
            raise _cut(offset)
        return None
    if len(header) < BLOCK or not _checksum_fits(header):
        raise _compressed(header) if offset == 0 else _cut(offset)
    return header


def name_of(header: bytes) -> bytes:
    """Return the name in a header; the beginning of one that is longer than a header holds."""
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:
        return header[345:500].partition(b"\0")[0] + b"/" + name
    return name


def printable(name: bytes) -> str:
    """Return a name that is safe for a terminal: one line, escaped where needed, of limited length."""
    text = name[:200].decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _checksum_fits(header: bytes) -> bool:
    try:
        expected = int(header[148:156].strip(b" \0") or b"x", 8)
    except ValueError:
        return False
    return expected == sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _pax_records(content: bytes, offset: int) -> dict[bytes, bytes]:
    """Return the records ``length keyword=value``, where the length counts the whole record with its newline."""
    records = {}
    while content:
        digits = content.partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        if not len(digits) < length <= len(content):
            raise _cut(offset)
        keyword, _, value = content[len(digits) + 1 : length - 1].partition(b"=")
        records[keyword] = value
        content = content[length:]
    if any(keyword.startswith(b"GNU.sparse") for keyword in records):
        raise TarError("holds a sparse file; write the tar file with plain files only")
    return records


def _number(field: bytes, base: int = 8) -> int:
    if field[:1] >= b"\x80":  # in base 256, for 8 GiB and more
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", base)
    except ValueError:
        raise TarError("has a damaged header; copy the file again") from None


def _cut(offset: int) -> TarError:
    return TarError(f"is cut off or damaged at byte {offset:,}; copy the file again")


def _compressed(header: bytes) -> TarError:
    for magic, name in _COMPRESSED.items():
        if header.startswith(magic):
            return TarError(f"is compressed with {name}, and must be read at any position; decompress it")
    return TarError("is not a tar file")
