"""Read images from a folder: one sub-folder for each class, files at any depth below it."""

import os
import re
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from model_export.errors import DataError
from model_export.evaluation.data.samples import IMAGE_SUFFIXES, Rows, Sample, printable
from service.errors import InvalidImage, PayloadTooLarge
from service.images.decoding import DEFAULT_LIMITS

WORDNET_ID: Final = re.compile(r"n[0-9]{8}")
_SPLITS: Final = frozenset({"train", "training", "val", "valid", "validation", "dev", "test"})


class FolderSource:
    """A folder of images. Labels are the names of sub-folders, with ``_`` as a space except in WordNet ids."""

    class_names: tuple[str, ...] | None = None

    def __init__(self, path: Path) -> None:
        """List every image; skip names that begin with a dot.

        Raises:
            DataError: a sub-folder holds no images, or the sub-folders are splits of a data set, not its classes.
        """
        self.path = path
        self.labels: list[str] = []
        self._files: list[str] = []
        try:
            folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        except OSError as exc:
            raise DataError(f"{path}: cannot be read ({exc.strerror})") from exc
        if folders and all(folder.name.lower() in _SPLITS for folder in folders):
            raise DataError(f"{path}: holds splits, not classes; name one of them, such as {folders[-1]}")
        for folder in folders:
            files = _images(folder)
            if not files:
                raise DataError(
                    f"{path / printable(folder.name)}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}); every "
                    "sub-folder is a class: add its images, or move it away"
                )
            name = folder.name if WORDNET_ID.fullmatch(folder.name) else folder.name.replace("_", " ")
            self.labels += [name] * len(files)
            self._files += files

    def samples(self, rows: Rows) -> Iterator[Sample]:
        """Yield the images of these rows, to be read on demand."""
        for row in rows.tolist():
            file = self._files[row]
            yield Sample(row, printable(file), partial(_read, file))


def _images(folder: Path) -> list[str]:
    """Return the sorted paths of all images below a folder; do not follow links to folders, which may be circular."""
    found = []
    for root, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.join(root, name)  # noqa: PTH118 - a million Paths are slow to make
            for name in files
            if not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)


def _refuse(exc: OSError) -> NoReturn:
    raise DataError(f"{exc.filename}: cannot be read ({exc.strerror})") from exc


def _read(file: str) -> bytes:
    path = Path(file)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InvalidImage("The image is not a regular file.")
    if status.st_size > DEFAULT_LIMITS.max_bytes:
        raise PayloadTooLarge(f"The image has {status.st_size} bytes; the limit is {DEFAULT_LIMITS.max_bytes}.")
    return path.read_bytes()
