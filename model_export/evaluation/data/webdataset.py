"""Read WebDataset shards: tar files in which neighbouring members ``key.jpg`` and ``key.cls`` make one sample.

Nothing is extracted to the disk, so a member's name is never a path; links and devices are skipped. The file is read
from front to back, compressed or not: once for the labels, once for the images.
"""

import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from lzma import LZMAError
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from model_export.errors import DataError
from model_export.evaluation.data.samples import IMAGE_SUFFIXES, Label, Rows, Sample, printable
from service.errors import PayloadTooLarge
from service.images.decoding import DEFAULT_LIMITS

_LABEL_SUFFIXES: Final = ("cls", "txt")  # the first one found counts
_NUMBER: Final = re.compile(r"-?[0-9]{1,9}")
_LABEL_BYTES: Final = 1_000
_END_MARK: Final = bytes(2 * tarfile.BLOCKSIZE)


class _Member(NamedTuple):
    archive: tarfile.TarFile
    entry: tarfile.TarInfo
    key: str
    suffix: str


class TarSource:
    """One shard. ``key.cls`` holds a number or a name; if it is missing, ``key.txt`` holds a name."""

    class_names: tuple[str, ...] | None = None

    def __init__(self, path: Path) -> None:
        """Read the labels.

        Raises:
            DataError: the tar file is damaged, an image has no label, or a label is invalid.
        """
        self.path = path
        self.labels: list[Label] = []
        for key, members in groupby(_members(path), lambda member: member.key):
            labels: dict[str, bytes] = {}
            image: str | None = None
            for member in members:
                if member.suffix in _LABEL_SUFFIXES:
                    labels[member.suffix] = self._label_bytes(member)
                elif member.suffix in IMAGE_SUFFIXES:
                    image = member.suffix
            if image is None:  # a note, or an unused part of a sample
                continue
            suffix = next((suffix for suffix in _LABEL_SUFFIXES if suffix in labels), None)
            name = printable(key)
            if suffix is None:
                raise DataError(f"{path}: {name}.{image} has no label; put {name}.cls or {name}.txt beside it")
            self.labels.append(self._label(labels[suffix], suffix, f"{name}.{suffix}"))
        if not self.labels:
            raise DataError(f"{path}: holds no images; add members such as 0001.jpg with 0001.cls")

    def samples(self, rows: Rows) -> Iterator[Sample]:
        """Yield the images of these rows, in one pass."""
        wanted = set(rows.tolist())
        last = max(wanted, default=-1)
        row = -1
        for _, members in groupby(_members(self.path), lambda member: member.key):
            image = next((member for member in members if member.suffix in IMAGE_SUFFIXES), None)
            if image is None:
                continue
            row += 1
            if row in wanted:
                where = f"{self.path}: {printable(image.entry.name)}"
                yield Sample(row, where, self._reader(image))
            if row >= last:
                return

    def _label_bytes(self, member: _Member) -> bytes:
        if member.entry.size > _LABEL_BYTES:
            raise DataError(
                f"{self.path}: {printable(member.entry.name)} has {member.entry.size:,} bytes; "
                "it must hold a class's number or name"
            )
        return _content(member, self.path)

    def _label(self, content: bytes, suffix: str, name: str) -> Label:
        try:
            text = content.decode().strip()
        except UnicodeDecodeError as exc:
            raise DataError(f"{self.path}: {name} is not text in UTF-8") from exc
        if not text:
            raise DataError(f"{self.path}: {name} is empty; it must hold a class's number or name")
        return int(text) if suffix == "cls" and _NUMBER.fullmatch(text) else text

    def _reader(self, image: _Member) -> Callable[[], bytes]:
        size = image.entry.size
        if size > DEFAULT_LIMITS.max_bytes:
            return partial(_raise_too_large, size)
        content = _content(image, self.path)  # read now, while the archive is at this member
        return lambda: content


def _members(path: Path) -> Iterator[_Member]:
    """Yield a tar file's regular files whose names have a key and a suffix, split as WebDataset does."""
    with _refusing(path), tarfile.open(path, "r:*") as archive:
        position = -1
        while (entry := archive.next()) is not None:
            if archive.offset <= position:  # a negative size would loop for ever
                raise DataError(f"{path}: {printable(entry.name)} has an impossible size; copy the file again")
            position = archive.offset
            cast("Any", archive).members.clear()  # the library keeps all of them, and a shard may have millions
            folder, slash, name = entry.name.rpartition("/")
            stem, dot, suffix = name.partition(".")
            if entry.isreg() and not entry.issparse() and stem and dot:
                yield _Member(archive, entry, folder + slash + stem, suffix.lower())
        _check_end(archive, path)


def _content(member: _Member, path: Path) -> bytes:
    with _refusing(path):
        stream = member.archive.extractfile(member.entry)
        content = b"" if stream is None else stream.read()
    if len(content) != member.entry.size:
        raise DataError(f"{path}: ends within {printable(member.entry.name)}; copy the file again")
    return content


def _check_end(archive: tarfile.TarFile, path: Path) -> None:
    """Refuse a file that is cut or damaged between two members, which the library takes for the end."""
    stream = archive.fileobj
    assert stream is not None  # noqa: S101 - an open archive has one
    stream.seek(archive.offset)
    if stream.read(len(_END_MARK)) != _END_MARK:
        raise DataError(f"{path}: is cut off or damaged at byte {archive.offset:,}; copy the file again")


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, OSError, EOFError, zlib.error, LZMAError) as exc:
        reason = next(iter(str(exc).splitlines()), type(exc).__name__)
        raise DataError(f"{path}: is not a complete tar file ({reason}); copy the file again") from exc


def _raise_too_large(size: int) -> bytes:
    raise PayloadTooLarge(f"The image has {size} bytes; the limit is {DEFAULT_LIMITS.max_bytes}.")
