"""Choose the held-out pictures on which a run is measured, and decode them as the service does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from model_export.data.captions import is_usable
from model_export.data.loading import open_image
from model_export.data.pairs import BrokenRowError, PairFile, Rows
from model_export.data.reader import PairReader
from model_export.training.validation import LabelledImages
from service.model.manifest import ImageSection
from service.model.resizing import preprocess

MOST_ROWS = 10_000
"""Pictures of a set, which are held in memory decoded; of more, evenly spaced ones."""
MOST_FILES = 16
"""Files that are measured one by one; more are measured together."""


@dataclass(frozen=True)
class HeldOutSet:
    """Held-out rows with a class.

    Attributes:
        name: in the metrics.
        rows: global row numbers, ascending.
        labels: their classes.
    """

    name: str
    rows: Rows
    labels: tuple[str, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the classes, sorted."""
        return tuple(sorted(set(self.labels)))

    def images(self, reader: PairReader, section: ImageSection, *, pass_over_broken: bool) -> LabelledImages:
        """Decode the pictures.

        Raises:
            BrokenRowError: a picture cannot be read, and broken ones are not passed over.
        """
        pixels = np.empty((len(self.rows), section.height, section.width, 3), dtype=np.uint8)
        index = {label: i for i, label in enumerate(self.class_names)}
        labels: list[int] = []
        for row, label in zip(self.rows.tolist(), self.labels, strict=True):
            try:
                pixels[len(labels)] = preprocess(open_image(reader, row, reader[row].image), section)
            except BrokenRowError:
                if not pass_over_broken:
                    raise
            else:
                labels.append(index[label])
        return LabelledImages(self.name, pixels[: len(labels)], np.array(labels, dtype=np.int64), self.class_names)


def held_out_sets(reader: PairReader, every: int) -> list[HeldOutSet]:
    """Choose the sets: one a file, or one of all if the files are many. Rows without a class are left out.

    Raises:
        DataError: a file is damaged.
    """
    first = reader.groups.files
    files = [file if file.has_labels else None for file in reader.files]
    counts = np.array([_held_out_of(file, every) if file else 0 for file in files])
    together = np.count_nonzero(counts) > MOST_FILES
    chosen = [counts] if together else [np.where(np.arange(len(counts)) == at, counts, 0) for at in counts.nonzero()[0]]
    sets = []
    for of_files in chosen:
        rows = _spread(of_files, first, every)
        labels = zip(rows.tolist(), reader.labels(rows), strict=True)
        known = [(row, label) for row, label in labels if label is not None and is_usable(label)]
        if known:
            name = "held-out" if together else PurePosixPath(reader.files[int(of_files.argmax())].name).stem
            sets.append(HeldOutSet(name, np.array([row for row, _ in known]), tuple(label for _, label in known)))
    return sets


def held_out_rows(reader: PairReader, every: int) -> int:
    """Count the rows that are held out."""
    return sum(_held_out_of(file, every) for file in reader.files)


def _held_out_of(file: PairFile, every: int) -> int:
    return int(file.group_rows.sum()) // every if every else 0


def _spread(counts: Rows, first: Rows, every: int) -> Rows:
    """Return evenly spaced held-out rows, at most `MOST_ROWS`, of files with these counts of them and first rows."""
    total = int(counts.sum())
    if total == 0:
        return np.empty(0, dtype=np.int64)
    index = np.linspace(0, total - 1, min(total, MOST_ROWS)).astype(np.int64)
    ends = np.cumsum(counts)
    file = np.searchsorted(ends, index, side="right")
    rows: Rows = first[file] + (index - (ends - counts)[file]) * every + every - 1
    return rows
