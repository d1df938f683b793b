"""Estimates the cost of a JPEG from its markers, and decodes it at a smaller scale.

A JPEG decoder can omit the high frequencies of each block of 8 · 8 samples, and so return a picture of a half, a
quarter or an eighth of the size for a fraction of the work.
"""

import re
from typing import Final

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from service.errors import InvalidImage

MARGIN: Final = 2.0
"""A picture decoded at a smaller scale has sides of at least so many times those of the resized picture.

Measured, see docs/preprocessing.md: a smaller margin changes answers.
"""

_MARKER: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_START, _END, _SCAN, _TEMPORARY = 0xD8, 0xD9, 0xDA, 0x01
_SCANS_AT_FULL_SIZE: Final = 16


def check_scans(image: Image.Image, data: bytes, *, max_pixels: int) -> bool:
    """Return whether the picture is decoded a few rows at a time, without all its coefficients in memory.

    Raises:
        InvalidImage: a progressive picture with so many scans over its pixels that a few bytes would cost minutes.
    """
    most = _SCANS_AT_FULL_SIZE * max_pixels // (image.width * image.height)
    scans, position, components = 0, 2, 0
    while found := _MARKER.search(data, position):
        marker, position = data[found.start() + 1], found.end()
        if marker == _END:  # decoders ignore the rest
            break
        if marker == _SCAN:
            scans += 1
            components = data[position + 2] if position + 2 < len(data) else 0
            if scans > most:
                raise InvalidImage(f"The JPEG image has more than {most} scans; save it again.")
        if marker not in (_START, _TEMPORARY):  # the others have a length, which skips their content
            position += int.from_bytes(data[position : position + 2], "big")
    whole = isinstance(image, JpegImageFile) and components == image.layers
    return scans == 1 and whole and "progressive" not in image.info


def shrink(image: Image.Image, wanted: tuple[int, int], margin: float = MARGIN) -> int:
    """Set an undecoded JPEG to the smallest sufficient scale 1/n; return n: 1, 2, 4 or 8.

    Both sides stay at least `margin` times those `wanted`, in pixels as stored: width and height are not yet turned
    upright. Sides are rounded up.
    """
    width, height = image.size
    least = [max(1, round(side * margin)) for side in wanted]
    if width < 2 * least[0] or height < 2 * least[1] or not isinstance(image, JpegImageFile):
        return 1
    drafted = image.draft(image.mode, (least[0], least[1]))
    return 1 if drafted is None else round(width / drafted[1][2])  # the right edge, with its part of a pixel
