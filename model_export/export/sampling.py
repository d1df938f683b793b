"""Draw real images from labelled data, for calibration and comparison. Needs no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from model_export.errors import DataError
from model_export.evaluation.classes import find_classes
from model_export.evaluation.data.samples import choose_rows, printable
from model_export.evaluation.data.sources import open_data
from model_export.export.reduce import PictureSample
from service.errors import AnyclassError
from service.images.decoding import decode
from service.model.manifest import ImageSection

PICTURES: Final = 512
"""Number of images: enough for stable ranges and cosines, few enough to take seconds."""


def check_data(paths: Sequence[str]) -> None:
    """Check labelled data without decoding an image.

    Raises:
        DataError: a path does not exist, its kind is unknown, or the labels are invalid.
    """
    find_classes(open_data(paths))


def draw_sample(paths: Sequence[str], section: ImageSection, *, pictures: int = PICTURES) -> PictureSample:
    """Draw images from all paths together, always the same ones, and preprocess them for a bundle.

    Raises:
        DataError: the kind of a path is unknown, or an image cannot be read.
    """
    sources = open_data(paths)
    classes = find_classes(sources)
    chosen = choose_rows([len(source.labels) for source in sources], limit=pictures)
    pixels = []
    for source, rows in zip(sources, chosen, strict=True):
        for sample in source.samples(rows):
            try:
                pixels.append(decode(sample.read(), section))
            except (AnyclassError, OSError) as exc:
                reason = exc.detail if isinstance(exc, AnyclassError) else exc.strerror
                raise DataError(f"{printable(sample.where)}: {reason}") from exc
    names = ", ".join(Path(path).name for path in paths)
    return PictureSample(names, np.stack(pixels), tuple(dict.fromkeys(classes.names)))
