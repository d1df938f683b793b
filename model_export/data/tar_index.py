"""The index of a WebDataset tar: where the members of each sample lie.

Neighbouring members ``key.jpg`` and ``key.txt`` make one sample. The index is made in one pass over the headers, and
kept beside the tar file, or in the cache folder if that cannot be written: 37 bytes a sample, read as needed.
See docs/adr/0025-tar-index.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from model_export.data.tar_members import BLOCK, Member, TarError, members, name_of, printable

ReadAt = Callable[[int, int], bytes]

SAMPLE: Final = np.dtype(
    [
        ("image", "<i8"), ("image_size", "<u4"),
        ("text", "<i8"), ("text_size", "<u4"),
        ("label", "<i8"), ("label_size", "<u4"),
        ("json", "u1"),
    ]
)  # fmt: skip
"""Offset and size of each member in bytes, 0 if the sample lacks it; whether text (1) and label (2) are JSON."""
_ENTRY: Final = struct.Struct("<qIqIqIB")
TEXT_IS_JSON, LABEL_IS_JSON = 1, 2

_IMAGES: Final = frozenset({"jpg", "jpeg", "png", "webp"})
_USED: Final = _IMAGES | {"txt", "json", "cls"}
_VERSION: Final = 1
_HEADER: Final = 512
_PIECE: Final = 8 * 2**20


@dataclass(frozen=True)
class TarIndex:
    """An index on the disk.

    Attributes:
        path: its file.
        samples: number of samples.
        has_labels: whether a sample may have a class.
        digest: hash of the tar file's size and of all headers, with names, sizes and times of its members.
    """

    path: Path
    samples: int
    has_labels: bool
    digest: str

    def read(self, start: int, stop: int) -> npt.NDArray[np.void]:
        """Read the entries of the samples from ``start`` to ``stop``."""
        return np.fromfile(self.path, SAMPLE, count=stop - start, offset=_HEADER + start * SAMPLE.itemsize)


@dataclass(frozen=True)
class _Head:
    version: int
    size: int
    mark: str
    samples: int
    has_labels: bool
    digest: str


def open_index(path: Path, *, size: int, mark: str) -> TarIndex | None:
    """Open the index of a tar file; return None if it has none.

    Args:
        path: of the index.
        size: of the tar file, in bytes.
        mark: a text that changes with it, such as its time of change.

    Raises:
        TarError: the index is of another tar file or an older one, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_HEADER)
        length = path.stat().st_size
    except OSError:
        return None
    try:
        head = _Head(**json.loads(content))
    except (ValueError, TypeError):
        head = None
    if head is None or head.version != _VERSION or length != _HEADER + head.samples * SAMPLE.itemsize:
        raise TarError(f"has an index that cannot be read; delete {path}, and it is made again")
    if (head.size, head.mark) != (size, mark):
        raise TarError(f"was changed after its index was made; delete {path}, and it is made again")
    return TarIndex(path, head.samples, head.has_labels, head.digest)


def build_index(paths: list[Path], read_at: ReadAt, *, size: int, mark: str) -> TarIndex:
    """Read all headers of a tar file, and write the index to the first of these paths that can be written.

    Raises:
        TarError: the tar file or its names cannot be used, or no path can be written.
    """
    samples = _Samples(size)
    for member in members(read_at, size):
        samples.add(member)
    entries = samples.finish(read_at)
    has_labels = bool((entries["label_size"] > 0).any())
    head = _Head(_VERSION, size, mark, len(entries), has_labels, samples.digest.hexdigest())
    content = json.dumps(asdict(head)).encode().ljust(_HEADER - 1) + b"\n"
    problem: OSError | None = None
    for path in paths:
        try:
            _write(path, content, entries)
        except OSError as error:
            problem = error
        else:
            return TarIndex(path, len(entries), has_labels, head.digest)
    raise TarError(f"has no index, and none can be written ({problem})")


def _write(path: Path, head: bytes, entries: npt.NDArray[np.void]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several processes may index one file at a time: each writes a file of its own, and the last one stays.
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(head)
            entries.tofile(file)
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(partial).unlink()
        raise


class _Samples:
    """Groups members into samples."""

    def __init__(self, size: int) -> None:
        self.digest = hashlib.sha256(str(size).encode())
        self._is_empty = True
        self._entries = bytearray()
        self._keys = array("Q")
        self._key: bytes | None = None
        self._parts: dict[str, Member] = {}

    def add(self, member: Member) -> None:
        """Take the next member.

        Raises:
            TarError: its name leads out of the tar file, or occurs twice.
        """
        self.digest.update(member.header)
        self._is_empty = False
        name = member.name
        if name.startswith(b"/") or b".." in name.split(b"/"):
            raise TarError(f"{printable(name)} leads out of the tar file; write it with plain names")
        folder, slash, base = name.rpartition(b"/")
        stem, _, suffix = base.partition(b".")
        kind = suffix.decode("ascii", "replace").lower()
        if not stem or kind not in _USED:
            return
        key = folder + slash + stem
        if key != self._key:
            self._close()
            self._key = key
        elif kind in self._parts:
            raise TarError(f"{printable(name)} occurs twice; give each sample a key of its own")
        self._parts[kind] = member

    def finish(self, read_at: ReadAt) -> npt.NDArray[np.void]:
        """Return the entries of all samples.

        Raises:
            TarError: a key occurs twice, or no sample of a tar with members has an image.
        """
        self._close()
        entries = np.frombuffer(self._entries, SAMPLE)
        keys, first, counts = np.unique(np.frombuffer(self._keys, np.uint64), return_index=True, return_counts=True)
        if len(keys) < len(entries):
            again = int(entries["image"][first[counts > 1][0]])
            name = printable(name_of(read_at(BLOCK, again - BLOCK)))
            raise TarError(f"{name} has a key that occurs twice; give each sample a key of its own")
        if not len(entries) and not self._is_empty:
            raise TarError("has no images; add members such as 0001.jpg with 0001.txt")
        return entries

    def _close(self) -> None:
        parts, key = self._parts, self._key
        self._parts = {}
        image = next((member for kind, member in parts.items() if kind in _IMAGES), None)
        if image is None or key is None:
            return  # a note, or an unused part of a sample
        text, label = parts.get("txt", parts.get("json")), parts.get("cls", parts.get("json"))
        flags = TEXT_IS_JSON * ("txt" not in parts) + LABEL_IS_JSON * ("cls" not in parts)
        entry = [place for part in (image, text, label) for place in ((part.offset, part.size) if part else (0, 0))]
        if max(entry[1::2]) >= 2**32:
            raise TarError(f"{printable(image.name)} or its text has 4 GiB or more")
        self._entries += _ENTRY.pack(*entry, flags)
        self._keys.append(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little"))


def cache_path(cache: Path, name: str, *marks: object) -> Path:
    """Return the place in the cache folder of the index of a file, by its name and marks of its content."""
    digest = hashlib.sha256(repr((name, *marks)).encode()).hexdigest()
    return cache / "tar-indexes" / f"{digest[:32]}.index"


def in_large_pieces(read_at: ReadAt) -> ReadAt:
    """Return a reader of neighbouring pieces of a remote file that fetches 8 MiB at a time."""
    start, piece = 0, b""

    def read(length: int, offset: int) -> bytes:
        nonlocal start, piece
        if not start <= offset <= offset + length <= start + len(piece):
            start, piece = offset, read_at(max(length, _PIECE), offset)
        return piece[offset - start : offset - start + length]

    return read
