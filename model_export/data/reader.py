"""Read pairs of several files by their global row number, a row group at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from model_export.data.pairs import Pair, PairFile, PairGroup, RowGroups, Rows, Texts
from model_export.errors import DataError


class PairReader:
    """Reads rows by global number, and keeps the last used row groups in memory.

    Rows are numbered through the files in the given order. The reader can be pickled; each process reads for itself.
    Images stay encoded.

    Attributes:
        files: the files, in order.
        groups: the row groups of all files.
    """

    def __init__(self, files: Sequence[PairFile], *, groups_in_memory: int) -> None:
        """Number the rows.

        Raises:
            DataError: the files hold no row.
        """
        self.files = tuple(files)
        counts = [file.group_rows for file in self.files]
        bounds = np.cumsum(np.concatenate([np.zeros(1, dtype=np.int64), *counts]))
        if bounds[-1] == 0:
            raise DataError(f"no rows in {', '.join(file.name for file in self.files) or 'the data: name a file'}")
        self._first_groups = np.cumsum([0, *map(len, counts)])
        self.groups = RowGroups(bounds, bounds[self._first_groups[:-1]])
        self._capacity = groups_in_memory
        self._cache: OrderedDict[int, PairGroup] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    def __len__(self) -> int:
        return int(self.groups.bounds[-1])

    def __getitem__(self, row: int) -> Pair:
        """Read a row.

        Raises:
            DataError: the file is damaged.
            BrokenRowError: only this row is.
        """
        number = self.groups.group_of(row)
        return self._group(number)[row - int(self.groups.bounds[number])]

    def where(self, row: int) -> str:
        """Return a row's file, and its number within that file, for an error message."""
        file = self.groups.file_of(row)
        return self.files[file].where(row - int(self.groups.files[file]))

    def texts(self, *, most: int) -> Iterator[Texts]:
        """Yield the texts of all rows, without reading images; of evenly spaced groups if the rows are more than most.

        Raises:
            DataError: a file is damaged.
        """
        stride = -(-len(self) // most)
        for number in range(0, len(self.groups.rows), stride):
            yield from self._texts_of(number)

    def labels(self, rows: Rows) -> list[str | None]:
        """Read the class of each of these rows, ascending, without reading images.

        Raises:
            DataError: a file is damaged.
        """
        labels = []
        number, texts = -1, list[Texts]()
        for row in rows.tolist():
            if self.groups.group_of(row) != number:
                number = self.groups.group_of(row)
                texts = list(self._texts_of(number))
            labels.append(texts[row - int(self.groups.bounds[number])].label)
        return labels

    def _texts_of(self, number: int) -> Sequence[Texts]:
        file, group = self._file_and_group(number)
        return file.texts(group)

    def _file_and_group(self, number: int) -> tuple[PairFile, int]:
        file = int(np.searchsorted(self._first_groups, number, side="right")) - 1
        return self.files[file], number - int(self._first_groups[file])

    def _group(self, number: int) -> PairGroup:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        file, at = self._file_and_group(number)
        group = file.load(at)
        self._cache[number] = group
        if len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return group
