"""Filter that drops pictures which show nothing, or too little of it.

Shorter side and aspect are DataComp's (Gadre et al., "DataComp: In search of the next generation of multimodal
datasets", 2023, "image-based filtering": shorter side at least 200 pixels, aspect at most 3).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from io import BytesIO
from typing import Final

import numpy as np
import pyarrow as pa
from PIL import Image

from model_export.curation.stage import IMAGE, StageResult, digest_of, split
from model_export.errors import CurationError
from service.errors import AnyclassError
from service.images.decoding import ImageLimits, open_rgb

_VERSION: Final = 1
_TRACKER_SIDE: Final = 3
_FLAT_GRID: Final = (16, 16)

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_WEBP_ANIMATED: Final = 0x02


class ImageReason(StrEnum):
    """Why a picture is dropped; the order is that of the checks."""

    MISSING = "missing"
    BROKEN = "broken"
    TRACKER = "tracker"
    ANIMATION = "animation"
    SMALL = "small"
    ASPECT = "aspect"
    FLAT = "flat"


@dataclass(frozen=True)
class ImageFilter:
    """Stage that drops pictures by `ImageReason`.

    Attributes:
        shorter_side: fewest pixels of the shorter side.
        aspect: most times that the longer side is the shorter one.
        flat: a picture is flat if no channel of its 16 × 16 reduction spans more than this, of 255.
        max_pixels: more are refused as broken, before they are decoded.

    Raises:
        CurationError: a setting is out of range.
    """

    shorter_side: int = 200
    aspect: float = 3.0
    flat: int = 8
    max_pixels: int = 50_000_000
    name: str = field(default="filter images", init=False)

    def __post_init__(self) -> None:
        if self.shorter_side < 1 or self.max_pixels < 1:
            raise CurationError("shorter side and pixels of the image filter must be at least 1")
        if not self.aspect >= 1:
            raise CurationError(f"aspect {self.aspect} of the image filter: must be at least 1, the one of a square")
        if not 0 <= self.flat <= 255:
            raise CurationError(f"flat {self.flat} of the image filter: must be from 0 to 255")

    @property
    def digest(self) -> str:
        """Return a hash of the rules' version and the settings."""
        return digest_of(self.name, _VERSION, asdict(self))

    def run(self, table: pa.Table) -> StageResult:
        """Return the rows whose picture has no reason to be dropped.

        Raises:
            CurationError: the pairs have no pictures.
        """
        if IMAGE not in table.column_names:
            raise CurationError(f"no column {IMAGE!r} of encoded pictures; the image filter needs them")
        limits = ImageLimits(max_pixels=self.max_pixels)
        # One picture at a time is copied out of the table.
        reasons = [self.reason(each.as_py(), limits) for each in table[IMAGE]]
        return split(table, pa.array(reasons, pa.string()))

    def reason(self, data: bytes | None, limits: ImageLimits) -> ImageReason | None:
        """Return why a picture is dropped, or None if it stays."""
        if data is None:
            return ImageReason.MISSING
        try:
            image = open_rgb(data, limits)
        except AnyclassError:
            return ImageReason.BROKEN
        shorter, longer = sorted(image.size)
        checks = (
            (ImageReason.TRACKER, longer <= _TRACKER_SIDE),
            (ImageReason.ANIMATION, is_animation(data)),
            (ImageReason.SMALL, shorter < self.shorter_side),
            (ImageReason.ASPECT, longer > self.aspect * shorter),
        )
        for reason, holds in checks:
            if holds:
                return reason
        return ImageReason.FLAT if _span(image) <= self.flat else None


def is_animation(data: bytes) -> bool:
    """Return whether an encoded picture has more than one frame: GIF, PNG, WebP, AVIF. Pages of a TIFF do not count."""
    if data.startswith(_PNG):
        return 0 < data.find(b"acTL") < data.find(b"IDAT")
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X":
        return bool(data[20] & _WEBP_ANIMATED)
    if data[4:12] == b"ftypavis":
        return True
    if data[:4] != b"GIF8":
        return False
    try:
        with Image.open(BytesIO(data)) as image:
            image.seek(1)
    except (EOFError, OSError, ValueError, SyntaxError):
        return False  # the second frame is absent or broken; the first one was read
    return True


def _span(image: Image.Image) -> int:
    """Return the largest difference between parts of the picture in one channel; the grain of a JPEG does not count."""
    parts = np.asarray(image.resize(_FLAT_GRID, Image.Resampling.BOX))  # [16, 16, 3]
    return int(np.ptp(parts, axis=(0, 1)).max())
