"""Chunks of a PNG that decide no pixel: they fail no picture and cost nothing."""

import time
import zlib

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidImage
from service.images.decoding import open_rgb
from service.images.png import without_metadata
from tests.support.pictures import encode, exif_of, noise, png, png_chunk, png_rows, quadrants

HEADER_END = 33
PLAIN = encode(quadrants(), "PNG")
BOMB = zlib.compress(bytes(2 * 2**20))


def _with(*chunks: bytes, behind: bool = False, data: bytes = PLAIN) -> bytes:
    """Put chunks behind the header, or behind the pixels."""
    at = data.rindex(b"IEND") - 4 if behind else HEADER_END
    return data[:at] + b"".join(chunks) + data[at:]


def _same(data: bytes, expected: bytes = PLAIN) -> bool:
    return open_rgb(expected).tobytes() == open_rgb(data).tobytes()


ANCILLARY = {
    "XMP beyond a MiB": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB),
    "text beyond a MiB": png_chunk(b"zTXt", b"Comment\0\0" + BOMB),
    "profile beyond a MiB": png_chunk(b"iCCP", b"name\0\0" + BOMB),
    "text of unknown packing": png_chunk(b"zTXt", b"Comment\0\7" + BOMB),
    "profile of unknown packing": png_chunk(b"iCCP", b"name\0\7"),
    "profile without an end": png_chunk(b"iCCP", b"name"),
    "short gamma": png_chunk(b"gAMA", b"\0"),
    "short primaries": png_chunk(b"cHRM", b"\0" * 31),
    "short sRGB": png_chunk(b"sRGB", b""),
    "short resolution": png_chunk(b"pHYs", b"\0"),
    "short animation control": png_chunk(b"acTL", b"\0"),
    "frame out of sequence": png_chunk(b"acTL", b"\0\0\0\2\0\0\0\0") + png_chunk(b"fcTL", b"\0\0\0\7" + bytes(22)),
    "short colour key": png_chunk(b"tRNS", b"\0"),
    "unknown": png_chunk(b"anYx", b"?"),
    "wrong checksum of text": png_chunk(b"tEXt", b"Comment\0?", intact=False),
    "wrong checksum of a colour key": png_chunk(b"tRNS", b"\0\xff\0\0\0\0", intact=False),
    "wrong checksum of EXIF": png_chunk(b"eXIf", exif_of(orientation=6), intact=False),
    "EXIF that cannot be read": png_chunk(b"eXIf", b"MM\0*\0\0\xff\xff"),
    "EXIF as text that cannot be read": png_chunk(b"zTXt", b"Raw profile type exif\0\0?"),
    "EXIF as text beyond a MiB": png_chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB),
}


@pytest.mark.parametrize("behind", [False, True], ids=["before the pixels", "behind the pixels"])
@pytest.mark.parametrize("kind", ANCILLARY)
def test_an_ancillary_chunk_fails_no_picture(kind: str, behind: bool) -> None:
    """Too large, too short, damaged or unknown: the pixels are those without it."""
    assert _same(_with(ANCILLARY[kind], behind=behind))


def test_an_ancillary_chunk_that_breaks_off_fails_no_picture() -> None:
    """All pixels came before it."""
    end = PLAIN.rindex(b"IEND") - 4
    assert _same(PLAIN[:end] + png_chunk(b"tEXt", b"Comment\0" + bytes(100))[:-50])


def test_a_key_behind_the_pixels_counts_nothing() -> None:
    """It belongs before them; browsers pass over it (PNG 5.6)."""
    assert _same(_with(png_chunk(b"tRNS", b"\0\xff\0\0\0\0"), behind=True))
    assert not _same(_with(png_chunk(b"tRNS", b"\0\xff\0\0\0\0")))


def test_more_alphas_than_palette_entries_count_nothing() -> None:
    """As for libpng."""
    palette = (b"PLTE", bytes([255, 0, 0, 0, 0, 0]))
    plain = png(2, 1, b"\0\0\1", colour_type=3, chunks=[palette])
    assert _same(png(2, 1, b"\0\0\1", colour_type=3, chunks=[palette, (b"tRNS", bytes(3))]), plain)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE"])
def test_a_damaged_critical_chunk_is_refused(kind: bytes) -> None:
    """Its pixels cannot be known."""
    image = quadrants().quantize(4)
    data = bytearray(encode(image, "PNG"))
    data[data.index(kind) + 5] ^= 1
    with pytest.raises(InvalidImage):
        open_rgb(bytes(data))


def test_bombs_of_text_cost_nothing() -> None:
    """Sixty kilobytes that unpack to 60 MiB of text: no more time than the picture alone."""
    bomb = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20 - 1), 9))
    data = _with(*[bomb] * 60)
    begin = time.thread_time()
    assert PLAIN == without_metadata(data)
    assert time.thread_time() - begin < 0.05


def test_a_png_without_metadata_is_not_copied() -> None:
    """Also with a tail, or with what decides pixels."""
    for data in (
        PLAIN,
        PLAIN + b"tail",
        _with(png_chunk(b"tRNS", bytes(6)), png_chunk(b"eXIf", exif_of(orientation=6))),
    ):
        assert without_metadata(data) is data


@pytest.mark.parametrize("behind", [False, True])
def test_orientation_in_old_text_is_undone(behind: bool) -> None:
    """ImageMagick wrote EXIF as hexadecimal text before there was a chunk for it; a chunk for it wins."""

    def text(orientation: int) -> bytes:
        exif = b"Exif\0\0" + exif_of(orientation=orientation)
        return f"\nexif\n{len(exif):8}\n{exif.hex()}\n".encode()

    upright = quadrants().transpose(Image.Transpose.ROTATE_270)
    packed = png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text(6)))
    plain = png_chunk(b"tEXt", b"Raw profile type exif\0" + text(6))
    chunk = png_chunk(b"eXIf", exif_of(orientation=6))
    other = png_chunk(b"tEXt", b"Raw profile type exif\0" + text(3))
    for chunks in ([packed], [plain], [chunk], [chunk, other], [other, chunk]):
        assert upright.tobytes() == open_rgb(_with(*chunks, behind=behind)).tobytes()


def test_the_default_picture_of_an_animation_is_used() -> None:
    """Whether it is the first frame or none."""
    frames = [noise(16, 12, seed) for seed in range(3)]
    for default in (False, True):
        data = encode(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=default)
        assert frames[0].tobytes() == open_rgb(data).tobytes()
        assert len(without_metadata(data)) < len(data) / 2


def test_metadata_of_a_deep_picture_with_a_key_is_dropped() -> None:
    """Its low bytes are decoded from what was kept."""
    samples = np.full((1, 2, 3), 0x7F80, np.uint16)
    chunks = [(b"iCCP", b"name\0\0" + BOMB), (b"tRNS", samples[0, 0].astype(">u2").tobytes())]
    assert [[[255] * 3] * 2] == np.asarray(open_rgb(png(2, 1, png_rows(samples), bit_depth=16, chunks=chunks))).tolist()
