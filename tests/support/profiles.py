"""ICC profiles of three primaries and one curve, for tests."""

import struct
from io import BytesIO
from typing import Any, Final

from PIL import Image, ImageCms

Primaries = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]

SRGB: Final[Primaries] = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
"""XYZ of red, green and blue, adapted to D50, as all below."""
DISPLAY_P3: Final[Primaries] = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
ADOBE_RGB: Final[Primaries] = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
PROPHOTO: Final[Primaries] = ((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249))
EXCHANGED: Final[Primaries] = (SRGB[2], SRGB[1], SRGB[0])


def profile(primaries: Primaries, gamma: float | None = None, **extra: bytes) -> bytes:
    """Write a profile (ICC.1:2022); a gamma of None is sRGB's curve. `extra` are more tags."""
    fixed = [round(number * 65536) for number in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)]
    curve = struct.pack(">4sIHH5i", b"para", 0, 3, 0, *fixed)
    if gamma is not None:
        curve = struct.pack(">4sIIHxx", b"curv", 0, 1, round(gamma * 256))
    tags = {f"{name}TRC".encode(): curve for name in "rgb"}
    for name, colour in zip("rgb", primaries, strict=True):
        tags[f"{name}XYZ".encode()] = struct.pack(">4sI3i", b"XYZ ", 0, *(round(value * 65536) for value in colour))
    tags[b"wtpt"] = struct.pack(">4sI3i", b"XYZ ", 0, 63190, 65536, 54061)
    tags |= {name.encode(): content for name, content in extra.items()}
    table, body = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    white = struct.pack(">3i", 63190, 65536, 54061)
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4sI4s4s4s12x4s4s", size, b"", 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"acsp", b"")
    return (head.ljust(68, b"\0") + white).ljust(128, b"\0") + table + body


def encoded_in(image: Image.Image, content: bytes) -> Image.Image:
    """Return an sRGB picture with the samples that show it in a profile."""
    target: Any = ImageCms.ImageCmsProfile(BytesIO(content))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    found = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target, intent)
    assert found is not None
    return found
