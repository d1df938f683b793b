"""Read image-text pairs from a WebDataset tar, each sample at its place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from platformdirs import user_cache_path

from model_export.data.locations import PathOrUrl, describe, is_url, open_file, refusing
from model_export.data.pairs import BrokenRowError, Pair, Rows, Texts
from model_export.data.parquet import PairColumns
from model_export.data.tar_index import (
    LABEL_IS_JSON,
    TEXT_IS_JSON,
    ReadAt,
    TarIndex,
    build_index,
    cache_path,
    in_large_pieces,
    open_index,
)
from model_export.data.tar_members import BLOCK, TarError, name_of, printable
from model_export.errors import DataError
from service.images.decoding import DEFAULT_LIMITS

GROUP: Final = 256
"""Samples of a row group: the unit of shuffling."""
_LONGEST_TEXT: Final = 1024 * 1024


class TarPairs:
    """The samples of one tar file.

    ``key.jpg`` (or jpeg, png, webp) is the image, ``key.txt`` the caption, ``key.cls`` the class; of ``key.json``, the
    keys named as Parquet columns stand in for a missing one.

    Attributes:
        name: path or URL of the file.
        group_rows: rows of each group.
        has_labels: whether a sample may have a class.
        digest: of its size and of the headers of all members.
    """

    def __init__(self, name: PathOrUrl, columns: PairColumns) -> None:
        """Open the index, or make it.

        Raises:
            DataError: the tar file cannot be used, or the index is older than it.
        """
        self.name = str(name)
        self._columns = columns
        self._index = self._open_index()
        whole, rest = divmod(self._index.samples, GROUP)
        self.group_rows: Rows = np.array([GROUP] * whole + [rest] * (rest > 0), dtype=np.int64)
        self.has_labels = self._index.has_labels
        self.digest = self._index.digest
        if columns.label_required and not self.has_labels:
            raise DataError(
                f"{self.name}: has no classes, neither members .cls nor .json; captions without classes need "
                "captions.class_name_share = 0"
            )

    def where(self, row: int) -> str:
        """Return the file and the name of the sample's image."""
        (entry,) = self._index.read(row, row + 1)
        with refusing(self.name):
            header = open_file(self.name).read_at(BLOCK, int(entry["image"]) - BLOCK)
        return f"{self.name}, {printable(name_of(header))}"

    def texts(self, group: int) -> list[Texts]:
        """Read the texts of a group, without the images.

        Raises:
            DataError: the file is damaged.
        """
        samples = self.load(group)
        return [samples.texts(index) for index in range(len(samples.entries))]

    def load(self, group: int) -> _Samples:
        """Open a group: a local file's samples are read one by one, a remote file's all at once.

        Raises:
            DataError: the file is damaged.
        """
        start = group * GROUP
        entries = self._index.read(start, min(start + GROUP, self._index.samples))
        read_at: ReadAt = open_file(self.name).read_at
        if is_url(self.name):
            read_at = _fetched(read_at, entries, self.name)
        return _Samples(self, read_at, self._columns, entries, start)

    def _open_index(self) -> TarIndex:
        size, mark = describe(self.name)
        cache = user_cache_path("anyclass", appauthor=False)
        if is_url(self.name):
            # Nothing can be written beside it. The place follows from the content: a changed file has another one.
            places = [cache_path(cache, self.name, size, mark)]
        else:
            places = [Path(f"{self.name}.index"), cache_path(cache, self.name)]
        try:
            for place in places:
                if (index := open_index(place, size=size, mark=mark)) is not None:
                    return index
            with refusing(self.name):
                read_at: ReadAt = open_file(self.name).read_at
                if is_url(self.name):
                    read_at = in_large_pieces(read_at)
                return build_index(places, read_at, size=size, mark=mark)
        except TarError as error:
            raise DataError(f"{self.name}: {error}") from error


def _fetched(read_at: ReadAt, entries: npt.NDArray[np.void], name: str) -> ReadAt:
    """Fetch the bytes of a group's samples, which lie side by side, and return a reader of them."""
    parts = [(entries[part], entries[f"{part}_size"]) for part in ("image", "text", "label")]
    start = min(int(offset[size > 0].min()) for offset, size in parts if (size > 0).any())
    end = max(int((offset + size).max()) for offset, size in parts)
    with refusing(name):
        content = read_at(end - start, start)
    return lambda length, offset: content[offset - start : offset - start + length]


@dataclass(frozen=True)
class _Samples:
    """A group of samples."""

    file: TarPairs
    read_at: ReadAt
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
        with refusing(self.file.name):
            content = self.read_at(int(size), int(offset))
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
