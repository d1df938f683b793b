"""Converts pictures with an RGB profile, or a PNG's gamma, to sRGB. Only where the operator has chosen it.

A profile is untrusted input for Little CMS, which is written in C. So it sees only small profiles of three curves and
three primaries (ICC.1:2022, 8.4.3), whose tags were found beforehand; any error leaves the pixels as they are.
"""

import struct
from functools import lru_cache
from io import BytesIO
from typing import Final

from PIL import Image, ImageCms

MOST_PROFILE_BYTES: Final = 2**17

_HEADER: Final = struct.Struct(">16x4s4s12x4s")  # colour space, space of the connection, signature
_HEADER_BYTES, _ENTRY_BYTES = 128, 12
_MOST_TAGS: Final = 100
_NEEDED: Final = frozenset((b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC"))
_TABLES: Final = frozenset(
    (b"A2B0", b"A2B1", b"A2B2", b"B2A0", b"B2A1", b"B2A2", b"D2B0", b"D2B1", b"D2B2", b"D2B3", b"B2D0", b"mpet")
)
_TRANSFORMS: Final = 32
_SAME: Final = 2
"""A profile that moves no sample by more is taken for sRGB, so that pictures in sRGB keep their pixels."""
_STEPS: Final = (0, 51, 102, 153, 204, 255)

_STRAIGHT_UP_TO: Final = 0.0031308  # of sRGB's curve
_SRGB_GAMMA, _CLOSE, _GAMMAS = 1 / 2.2, 0.01, (0.1, 5.0)


def to_srgb(image: Image.Image, profile: object, gamma: object) -> Image.Image:
    """Return the picture in sRGB: by its profile, else by its gamma; unchanged if neither can be used.

    Args:
        image: of any mode; only RGB, RGBA, grey and palettes are converted.
        profile: the embedded ICC profile, bytes if the picture has one.
        gamma: exponent with which samples were encoded (PNG's gAMA), a float if the picture has one.
    """
    if profile:
        of_rgb = image.mode in {"RGB", "RGBA", "P"}
        transform = _transform(profile) if of_rgb and isinstance(profile, bytes) else None
        if transform is None:
            return image
        return ImageCms.applyTransform(_plain(image), transform[image.has_transparency_data]) or image
    if not isinstance(gamma, float) or image.mode not in {"RGB", "RGBA", "P", "L", "LA"}:
        return image
    if not _GAMMAS[0] <= gamma <= _GAMMAS[1] or abs(gamma - _SRGB_GAMMA) < _CLOSE:
        return image
    curve = [_encoded((value / 255) ** (1 / gamma)) for value in range(256)]
    image = _plain(image)
    return image.point(curve * 3 + (list(range(256)) if image.mode == "RGBA" else []))


def _plain(image: Image.Image) -> Image.Image:
    """Return the picture with samples of its own: mode RGB, or RGBA if it is transparent."""
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _encoded(linear: float) -> int:
    """Return the sRGB sample of 8 bits (IEC 61966-2-1)."""
    value = 12.92 * linear if linear <= _STRAIGHT_UP_TO else 1.055 * linear ** (1 / 2.4) - 0.055
    return round(255 * min(max(value, 0.0), 1.0))


@lru_cache(maxsize=_TRANSFORMS)
def _transform(profile: bytes) -> tuple[ImageCms.ImageCmsTransform, ImageCms.ImageCmsTransform] | None:
    """Return the transforms of RGB and RGBA to sRGB, None for a profile that is sRGB or not usable."""
    if not _is_simple(profile):
        return None
    try:
        source, target = ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB")
        rgb, rgba = (
            ImageCms.buildTransform(source, target, mode, mode, ImageCms.Intent.RELATIVE_COLORIMETRIC)
            for mode in ("RGB", "RGBA")
        )
        probe = Image.new("RGB", (len(_STEPS) ** 2, len(_STEPS)))
        probe.putdata([(r, g, b) for r in _STEPS for g in _STEPS for b in _STEPS])
        found = ImageCms.applyTransform(probe, rgb)
    except Exception:  # noqa: BLE001 - a profile that cannot be read does not spoil the picture
        return None
    same = found is not None and all(
        abs(one - other) <= _SAME for one, other in zip(probe.tobytes(), found.tobytes(), strict=True)
    )
    return None if same else (rgb, rgba)


def _is_simple(profile: bytes) -> bool:
    """Return whether a profile is small, of RGB, and of curves and primaries only."""
    if not _HEADER_BYTES + 4 <= len(profile) <= MOST_PROFILE_BYTES:
        return False
    space, connection, signature = _HEADER.unpack_from(profile)
    (count,) = struct.unpack_from(">I", profile, _HEADER_BYTES)
    first = _HEADER_BYTES + 4
    if (space, connection, signature) != (b"RGB ", b"XYZ ", b"acsp") or count > _MOST_TAGS:
        return False
    tags = {profile[first + i * _ENTRY_BYTES :][:4] for i in range(count)}
    return tags >= _NEEDED and not tags & _TABLES
