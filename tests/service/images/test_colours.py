"""Conversion to sRGB, where it is chosen."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.images.colours import MOST_PROFILE_BYTES
from service.images.decoding import open_rgb
from tests.support.pictures import encode, png, png_chunk, quadrants
from tests.support.profiles import ADOBE_RGB, DISPLAY_P3, EXCHANGED, PROPHOTO, SRGB, encoded_in, profile


def _muted() -> Image.Image:
    """Return a gradient of colours that every profile here can show."""
    y, x = np.mgrid[0:48, 0:64]
    return Image.fromarray(np.stack([60 + 2 * x, 90 + 2 * y, 150 - x], axis=2).astype(np.uint8))


def _difference(one: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(one).astype(int) - np.asarray(other)).mean())


PROFILES = {
    "P3": profile(DISPLAY_P3),
    "Adobe RGB": profile(ADOBE_RGB, 2.199),
    "ProPhoto": profile(PROPHOTO, 1.8),
    "exchanged": profile(EXCHANGED),
}


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("space", PROFILES)
def test_a_profile_is_converted_to_srgb(space: str, name: str) -> None:
    """In every format that carries one; without the choice it is ignored."""
    stored = encoded_in(_muted(), PROFILES[space])
    data = encode(stored, name, icc_profile=PROFILES[space])
    assert _difference(_muted(), open_rgb(data, profiles="convert")) < 2.5
    assert _difference(stored, open_rgb(data)) < 2.5
    assert _difference(stored, _muted()) > 3


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_transparent_pictures_and_palettes_are_converted(mode: str) -> None:
    """Before they are put on white."""
    swapped = Image.merge("RGB", quadrants().split()[::-1])
    data = encode(swapped.convert(mode), "PNG", icc_profile=PROFILES["exchanged"])
    assert _difference(quadrants(), open_rgb(data, profiles="convert")) < 1
    clear = swapped.convert("RGBA")
    clear.putalpha(0)
    data = encode(clear, "PNG", icc_profile=PROFILES["exchanged"])
    assert (255, 255, 255) == open_rgb(data, profiles="convert").getpixel((0, 0))


def test_a_picture_in_srgb_keeps_its_pixels() -> None:
    """To the bit, though its profile says it in its own way."""
    for content in (profile(SRGB), None):
        options = {} if content is None else {"icc_profile": content}
        assert quadrants().tobytes() == open_rgb(encode(quadrants(), "PNG", **options), profiles="convert").tobytes()


def _spoilt(at: int, content: bytes) -> bytes:
    return PROFILES["exchanged"][:at] + content + PROFILES["exchanged"][at + len(content) :]


UNUSABLE: dict[str, bytes] = {
    "empty": b"\0",
    "header only": PROFILES["exchanged"][:128],
    "breaks off": PROFILES["exchanged"][:-100],
    "of print": _spoilt(16, b"CMYK"),
    "of tables": profile(EXCHANGED, A2B0=b"mft1" + bytes(100)),
    "too many tags": _spoilt(128, b"\xff\xff\xff\xff"),
    "offsets beyond the end": _spoilt(136, b"\xff\xff\xff\xf0"),
    "no signature": _spoilt(36, b"none"),
    "too large": profile(EXCHANGED, text=bytes(MOST_PROFILE_BYTES)),
}


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("kind", UNUSABLE)
def test_a_profile_that_is_not_used_spoils_no_picture(kind: str, name: str) -> None:
    """The pixels are those without it."""
    plain, data = encode(quadrants(), name), encode(quadrants(), name, icc_profile=UNUSABLE[kind])
    assert open_rgb(plain).tobytes() == open_rgb(data, profiles="convert").tobytes()


def test_a_bomb_in_a_profile_is_not_unpacked() -> None:
    """Beyond the limit of a profile."""
    data = encode(quadrants(), "PNG")
    bomb = png_chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(2**24)))
    assert quadrants().tobytes() == open_rgb(data[:33] + bomb + data[33:], profiles="convert").tobytes()


def test_damaged_profiles_give_pixels() -> None:
    """Whatever is flipped: Little CMS gets them, and no error comes out."""
    chance = np.random.default_rng(0)
    for _ in range(200):
        content = bytearray(PROFILES["Adobe RGB"])
        for _ in range(4):
            content[chance.integers(len(content))] = chance.integers(256)
        assert (48, 32) == open_rgb(encode(quadrants(), "TIFF", icc_profile=bytes(content)), profiles="convert").size


@pytest.mark.parametrize(("colour_type", "samples"), [(2, 3), (0, 1)])
def test_a_pngs_gamma_is_undone(colour_type: int, samples: int) -> None:
    """Linear samples of half the light are 188 in sRGB; a chunk for sRGB, or the usual gamma, changes nothing."""

    def shown(*chunks: tuple[bytes, bytes], profiles: Any = "convert") -> Any:
        rows = b"\0" + bytes([128] * samples)
        return open_rgb(png(1, 1, rows, colour_type=colour_type, chunks=chunks), profiles=profiles).getpixel((0, 0))

    linear = (b"gAMA", struct.pack(">I", 100_000))
    assert (188, 188, 188) == shown(linear)
    for chunks in ([(b"gAMA", struct.pack(">I", 45_455))], [linear, (b"sRGB", b"\0")], [(b"gAMA", bytes(4))]):
        assert (128, 128, 128) == shown(*chunks)
    assert (128, 128, 128) == shown(linear, profiles="ignore")
