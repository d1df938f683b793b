"""Read image-text pairs from a WebDataset tar, each sample at its place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from platformdirs import user_cache_path

from model_export.data.locations import open_file
from model_export.data.pairs import BrokenRowError, Pair, Rows, Texts
from model_export.data.parquet import PairColumns
from model_export.data.tar_index import LABEL_IS_JSON, TEXT_IS_JSON, TarIndex, build_index, cache_path, open_index
from model_export.data.tar_members import BLOCK, TarError, name_of, printable
from model_export.errors import DataError, first_line
from service.images.decoding import DEFAULT_LIMITS

GROUP: Final = 256
"""Samples of a row group: the unit of shuffling."""
_LONGEST_TEXT: Final = 1024 * 1024


class TarPairs:
    """The samples of one tar file.

    ``key.jpg`` (or jpeg, png, webp) is the image, ``key.txt`` the caption, ``key.cls`` the class; of ``key.json``, the
    keys named as Parquet columns stand in for a missing one.

    Attributes:
        path: the file.
        group_rows: rows of each group.
        has_labels: whether a sample may have a class.
        digest: of its size and of the headers of all members.
    """

    def __init__(self, path: Path, columns: PairColumns) -> None:
        """Open the index, or make it.

        Raises:
            DataError: the tar file cannot be used, or the index is older than it.
        """
        self.path = path
        self._columns = columns
        self._index = self._open_index()
        whole, rest = divmod(self._index.samples, GROUP)
        self.group_rows: Rows = np.array([GROUP] * whole + [rest] * (rest > 0), dtype=np.int64)
        self.has_labels = self._index.has_labels
        self.digest = self._index.digest
        if columns.label_required and not self.has_labels:
            raise DataError(
                f"{path}: has no classes, neither members .cls nor .json; captions without classes need "
                "captions.class_name_share = 0"
            )

    @property
    def name(self) -> str:
        """Return its path."""
        return str(self.path)

    def where(self, row: int) -> str:
        """Return the file and the name of the sample's image."""
        (entry,) = self._index.read(row, row + 1)
        header = open_file(self.path).read_at(BLOCK, int(entry["image"]) - BLOCK)
        return f"{self.path}, {printable(name_of(header))}"

    def texts(self, group: int) -> list[Texts]:
        """Read the texts of a group, without the images.

        Raises:
            DataError: the file is damaged.
        """
        samples = self.load(group)
        return [samples.texts(index) for index in range(len(samples.entries))]

    def load(self, group: int) -> _Samples:
        """Open a group; its samples are read one by one."""
        start = group * GROUP
        entries = self._index.read(start, min(start + GROUP, self._index.samples))
        return _Samples(self, open_file(self.path), self._columns, entries, start)

    def _open_index(self) -> TarIndex:
        file = open_file(self.path)
        stat = self.path.stat()
        marks = {"size": stat.st_size, "modified_ns": stat.st_mtime_ns}
        cache = cache_path(user_cache_path("anyclass"), str(self.path))
        places = [self.path.with_name(self.path.name + ".index"), cache]
        try:
            for place in places:
                if (index := open_index(place, **marks)) is not None:
                    return index
            return build_index(places, file.read_at, **marks)
        except (TarError, OSError) as error:
            raise DataError(f"{self.path}: {first_line(error)}") from error


@dataclass(frozen=True)
class _Samples:
    """A group of samples of an open file."""

    file: TarPairs
    content: pa.NativeFile
    columns: PairColumns
    entries: npt.NDArray[np.void]
    first_row: int

    def __getitem__(self, index: int) -> Pair:
        entry = self.entries[index]
        if entry["image_size"] > DEFAULT_LIMITS.max_bytes:
            where = self.file.where(self.first_row + index)
            raise BrokenRowError(f"{where}: has {entry['image_size']} bytes; the limit is {DEFAULT_LIMITS.max_bytes}")
        return Pair(self._read(entry["image"], entry["image_size"]), *self.texts(index))

    def texts(self, index: int) -> Texts:
        """Return the texts of a sample by its number within the group."""
        entry = self.entries[index]
        text, label = (self._text(entry[name], entry[f"{name}_size"]) for name in ("text", "label"))
        if entry["json"] & TEXT_IS_JSON:
            text = _value(text, self.columns.text)
        if entry["json"] & LABEL_IS_JSON:
            label = _value(label, self.columns.label)
        return Texts(text, label)

    def _text(self, offset: int, size: int) -> str | None:
        if not 0 < size <= _LONGEST_TEXT:
            return None
        try:
            return self._read(offset, size).decode().strip()
        except UnicodeDecodeError:
            return None

    def _read(self, offset: int, size: int) -> bytes:
        try:
            content: bytes = self.content.read_at(int(size), int(offset))
        except OSError as error:
            raise DataError(f"{self.file.name}: cannot be read ({first_line(error)})") from error
        if len(content) < size:
            raise DataError(f"{self.file.name}: is shorter than its index says; copy the file again")
        return content


def _value(content: str | None, key: str) -> str | None:
    """Return a text or number of a JSON object as text, or None."""
    try:
        fields: Any = json.loads(content or "null")
    except (ValueError, RecursionError):
        return None
    value = fields.get(key) if isinstance(fields, dict) else None
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None
