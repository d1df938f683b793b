"""Parts of the canvas that a first frame leaves out."""

import struct

import numpy as np
import pytest
from PIL import Image

from service.images.decoding import open_rgb
from tests.support.pictures import animated_webp, encode, exif_of

RED = Image.new("RGB", (4, 4), (255, 0, 0))
EXPECTED = np.full((8, 8, 3), 255, np.uint8)
EXPECTED[4:, 4:] = (255, 0, 0)


def _gif(*, index: int, transparent: int | None = None) -> bytes:
    """Write a GIF of 8 · 8 whose frame covers the lower right quarter."""
    frame = Image.new("P", (4, 4), index)
    frame.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    data = bytearray(encode(frame, "GIF", **({} if transparent is None else {"transparency": transparent})))
    data[6:10] = struct.pack("<HH", 8, 8)
    at = data.index(b",\0\0\0\0\4\0\4\0")
    data[at + 1 : at + 5] = struct.pack("<HH", 4, 4)
    return bytes(data)


@pytest.mark.parametrize("transparent", [None, 0])
def test_a_gif_is_transparent_where_its_first_frame_is_not(transparent: int | None) -> None:
    """As browsers show it, with a transparent index and without."""
    assert EXPECTED.tolist() == np.asarray(open_rgb(_gif(index=1, transparent=transparent))).tolist()


@pytest.mark.parametrize("frames", [1, 2])
def test_a_webp_is_transparent_where_its_first_frame_is_not(frames: int) -> None:
    """Also if it has no alpha."""
    data = animated_webp((8, 8), [(4, 4, RED), (0, 0, Image.new("RGB", (8, 8)))][:frames])
    assert EXPECTED.tolist() == np.asarray(open_rgb(data)).tolist()


def test_such_a_webp_is_turned_upright() -> None:
    """Its EXIF holds for the canvas."""
    data = animated_webp((8, 8), [(4, 4, RED)])
    exif = exif_of(orientation=3)
    flagged = bytearray(data + b"EXIF" + struct.pack("<I", len(exif)) + exif)
    flagged[20] |= 8
    flagged[4:8] = struct.pack("<I", len(flagged) - 8)
    assert EXPECTED[::-1, ::-1].tolist() == np.asarray(open_rgb(bytes(flagged))).tolist()


def test_an_animation_that_breaks_off_before_its_first_frame_is_refused() -> None:
    """In bytes at any length, never as another error."""
    from service.errors import InvalidImage

    data = animated_webp((8, 8), [(4, 4, RED)])
    for length in range(12, len(data) - 1):
        with pytest.raises(InvalidImage):
            open_rgb(data[:length])
