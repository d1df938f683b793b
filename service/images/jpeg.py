"""Estimates the cost of a JPEG from its markers, tells a broken one, and decodes it at a smaller scale.

A JPEG decoder can omit the high frequencies of each block of 8 · 8 samples, and so return a picture of a half, a
quarter or an eighth of the size for a fraction of the work.
"""

import re
from collections.abc import Iterator
from io import BytesIO
from typing import Final, NamedTuple

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from service.errors import InvalidImage

MARGIN: Final = 2.0
"""A picture decoded at a smaller scale has sides of at least so many times those of the resized picture.

Measured, see docs/preprocessing.md: a smaller margin changes answers.
"""

_MARKER: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_START, _END, _SCAN, _TEMPORARY = 0xD8, 0xD9, 0xDA, 0x01
_HUFFMAN_FRAMES: Final = (0xC0, 0xC1, 0xC2)
_END_BYTES: Final = b"\xff\xd9"
_SCANS_AT_FULL_SIZE: Final = 16
_MOST_SCANS: Final = 100
"""Of a picture of any size. Encoders write at most some 20."""
_COEFFICIENTS: Final = 64
_APPLICATION, _COMMENT = 0xE0, 0xFE
_USED: Final = ((0xE0, b"JFIF\0", 14), (0xE1, b"Exif\0\0", 14), (0xEE, b"Adobe", 12))
"""Marker, beginning and least length of the segments that decide colours or orientation."""

_GREY: Final = (127, 128)
"""Samples of blocks that the data do not reach, inverted and not."""
_PROBE: Final = b"".join(
    bytes(41 * (64 * restart + i) ** 2 % 251 for i in range(64)) + bytes((0xFF, 0xD0 + restart)) for restart in range(8)
)
"""Any Huffman codes, in each restart interval. A decoder that still expects data takes them for pixels."""


class Layout(NamedTuple):
    """Scans of a JPEG.

    Attributes:
        by_rows: the picture is decoded a few rows at a time, without all its coefficients in memory.
        end: position of the end marker, None if it is missing.
        huffman: coded so that `check_whole` can tell whether the data break off.
    """

    by_rows: bool
    end: int | None
    huffman: bool


def layout_of(image: Image.Image, data: bytes, *, max_pixels: int) -> Layout:
    """Read the markers.

    Raises:
        InvalidImage: a progressive picture with so many scans over its pixels that a few bytes would cost minutes.
    """
    most = min(_MOST_SCANS, _SCANS_AT_FULL_SIZE * max_pixels // (image.width * image.height))
    scans, components, end, huffman = 0, 0, None, False
    for marker, position in _markers(data):
        if marker == _END:
            end = position - 2
        elif marker in _HUFFMAN_FRAMES:
            huffman = True
        elif marker == _SCAN:
            scans += 1
            components = data[position + 2] if position + 2 < len(data) else 0
            if scans > most:
                raise InvalidImage(f"The JPEG image has more than {most} scans; save it again.")
    whole = isinstance(image, JpegImageFile) and components == image.layers
    return Layout(scans == 1 and whole and "progressive" not in image.info, end, huffman)


def _markers(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield each marker with the position behind it, up to the end marker: decoders ignore the rest."""
    position = 2
    while found := _MARKER.search(data, position):
        marker, position = data[found.start() + 1], found.end()
        yield marker, position
        if marker == _END:
            return
        if marker not in (_START, _TEMPORARY):  # the others have a length, which skips their content
            position += int.from_bytes(data[position : position + 2], "big")


def ended(data: bytes, *, layers: int) -> bytes | None:
    """Return a JPEG that lacks its end marker with one, None if scans are missing.

    `check_whole` decides whether the last scan is whole.
    """
    known = set[tuple[int, int]]()
    for marker, position in _markers(data):
        if marker != _SCAN:
            continue
        of_scan = data[position + 2 : position + 3]
        spectrum = position + 3 + 2 * (of_scan[0] if of_scan else 0)
        if spectrum + 3 > len(data):
            return None
        first, last, bits = data[spectrum : spectrum + 3]
        if bits & 0xF == 0:  # down to the last bit
            components = data[position + 3 : spectrum : 2]
            known |= {(c, k) for c in components for k in range(first, min(last, _COEFFICIENTS - 1) + 1)}
    return _scan_data(data) + _END_BYTES if len(known) == layers * _COEFFICIENTS else None


def _scan_data(data: bytes) -> bytes:
    """Return the written part of a JPEG: without zeros to fill a file, or half an end marker."""
    body = data.rstrip(b"\0")
    if body.endswith(b"\xff"):
        body = body + b"\0" if len(body) < len(data) else body[:-1]
    return body


def may_break_off(image: Image.Image) -> bool:
    """Return whether the last pixel of a decoded JPEG, not yet turned, is as one that no data reached."""
    pixel = image.getpixel((image.width - 1, image.height - 1))
    return all(sample in _GREY for sample in (pixel if isinstance(pixel, tuple) else (pixel,)))


def check_whole(data: bytes) -> None:
    """Raise InvalidImage if Huffman-coded data end before the picture does; more may be behind the end marker.

    It decodes twice at an eighth of the size, with other codes behind the data. They change the picture only if a
    decoder still expects data: libjpeg counts this as a warning, which Pillow does not pass on.
    """
    markers = dict(_markers(data))
    if not any(marker in markers for marker in _HUFFMAN_FRAMES):
        return
    body = _scan_data(data[: markers[_END] - 2 if _END in markers else len(data)])
    if _averages(body + _END_BYTES) != _averages(body + _PROBE + _END_BYTES):
        raise InvalidImage("The JPEG image is truncated: its data end before the picture does.")


def _averages(data: bytes) -> bytes:
    image = Image.open(BytesIO(data), formats=["JPEG"])
    image.draft(image.mode, (1, 1))
    return image.tobytes()


def without_metadata(data: bytes) -> bytes:
    """Return a JPEG without the application segments and comments that decide no pixel, or are too short to."""
    kept, position = [data[:2]], 2
    while data[position : position + 1] == b"\xff" and position + 4 <= len(data) and data[position + 1] != _SCAN:
        marker, end = data[position + 1], position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        content = data[position + 4 : end]
        if not _APPLICATION <= marker <= _COMMENT or any(
            marker == of and content.startswith(name) and len(content) >= least for of, name, least in _USED
        ):
            kept.append(data[position:end])
        position = end
    return b"".join([*kept, data[position:]])


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
