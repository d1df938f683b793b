"""Finds the part of the canvas that the first frame of an animation covers; the rest is transparent.

Pillow fills the rest with the first colour of a GIF's palette, and with black in a WebP without alpha.
"""

import struct
from typing import Final, TypeAlias

from PIL import Image
from PIL.GifImagePlugin import GifImageFile

Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right and bottom, in pixels."""

_EXTENDED: Final = b"VP8X"
_CHUNK: Final = struct.Struct("<4sI")
_FIRST_CHUNK_AT, _FLAGS_AT = 12, 20
_ANIMATED: Final = 0x02
_FRAME_HEADER_BYTES: Final = 12
_MOST_CHUNKS: Final = 64


def first_frame(image: Image.Image, data: bytes) -> Box:
    """Return the box of the first frame of an undecoded image, the whole canvas for one that is no animation."""
    if isinstance(image, GifImageFile) and image.tile:
        left, top, right, bottom = image.tile[0].extents or (0, 0, *image.size)
        return left, top, right, bottom
    if data[_FIRST_CHUNK_AT : _FIRST_CHUNK_AT + 4] == _EXTENDED and data[_FLAGS_AT] & _ANIMATED:
        return _first_webp_frame(data) or (0, 0, *image.size)
    return 0, 0, *image.size


def _first_webp_frame(data: bytes) -> Box | None:
    """Read the position of the first ANMF chunk (WebP container specification, "Animation")."""
    position = _FIRST_CHUNK_AT
    for _ in range(_MOST_CHUNKS):
        if position + _CHUNK.size + _FRAME_HEADER_BYTES > len(data):
            return None
        kind, length = _CHUNK.unpack_from(data, position)
        if kind == b"ANMF":
            at = position + _CHUNK.size
            x, y, width, height = (int.from_bytes(data[at + i : at + i + 3], "little") for i in range(0, 12, 3))
            return 2 * x, 2 * y, 2 * x + width + 1, 2 * y + height + 1
        position += _CHUNK.size + length + length % 2
    return None


def on_white_canvas(image: Image.Image, box: Box) -> Image.Image:
    """Return the picture, mode RGB, white outside of the box."""
    if box == (0, 0, *image.size):
        return image
    canvas = Image.new("RGB", image.size, (255, 255, 255))
    canvas.paste(image.crop(box), box)
    return canvas
