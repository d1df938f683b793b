"""Undecoded Pillow image → upright, mode RGB, on white where transparent."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from typing import Final

import numpy as np
from PIL import ExifTags, Image

from service.errors import InvalidImage
from service.images import avif, jpeg, png, tiff
from service.images.colours import to_srgb
from service.images.frames import first_frame, on_white_canvas
from service.model.choices import ColourProfiles

_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WITHOUT_METADATA: Final = {"JPEG": jpeg.without_metadata, "AVIF": avif.without_exif}
_ANIMATIONS: Final = ("GIF", "WEBP")  # a frame may cover a part of the canvas
_WHITE: Final = (255, 255, 255)
_PNG_DEEP: Final = 16


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Turn any error of a decoder into the client's error. Wrap only calls into Pillow."""
    try:
        yield
    except InvalidImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise InvalidImage("The image has more pixels than the limit.") from exc
    except Exception as exc:  # decoders of damaged bytes raise anything from struct.error to MemoryError
        raise InvalidImage(f"The {name} image is corrupt, truncated or of an unsupported kind.") from exc


def opened(name: str, data: bytes) -> tuple[Image.Image, bytes]:
    """Read the header with the one decoder of the format; return the undecoded image and the bytes it is read from.

    Metadata that the decoder cannot read is removed. Raises InvalidImage.
    """
    with refusing(name):
        try:
            image = _by_pillow(name, data)
        except Exception:
            without = _WITHOUT_METADATA.get(name)
            if without is None:
                raise
            data = without(data)
            image = _by_pillow(name, data)
        _forget_xmp(image)
        return (tiff.with_planes_mended(image, data) if name == "TIFF" else image), data


def _by_pillow(name: str, data: bytes) -> Image.Image:
    # The signature decided: no other decoder sees these bytes, and Pillow's probing order does not matter.
    return Image.open(BytesIO(data), formats=[name])


def _forget_xmp(image: Image.Image) -> None:
    """Remove XMP, in which Pillow would look for an orientation; browsers do not."""
    if image.info.pop("xmp", None) is not None and (exif := image.info.get("exif")):
        with suppress(Exception):  # unreadable metadata does not affect the pixels
            read = image.getexif()
            read.load(b"")
            read.load(exif)


def rgb_of(
    name: str, image: Image.Image, data: bytes, *, doubtful: bool = False, profiles: ColourProfiles = "ignore"
) -> Image.Image:
    """Decode: upright, mode RGB, on white where transparent. Raises InvalidImage.

    Args:
        doubtful: a JPEG whose data may break off.
        profiles: `convert` converts it to sRGB.
    """
    with refusing(name):
        covered = first_frame(image, data) if name in _ANIMATIONS else None
        image.load()
        method, info = _UPRIGHT.get(orientation_of(image)), image.info
        if name == "JPEG" and (doubtful or jpeg.may_break_off(image)):
            jpeg.check_whole(data)
        elif name == "PNG":
            _apply_colour_key(image, data)
        elif name == "BMP":
            image = _without_empty_alpha(image)
        elif covered is not None:
            image = on_white_canvas(_on_white(image), covered)
        image = image if method is None else image.transpose(method)
    if image.mode.startswith("I;16"):
        image = _rgb_from_grey16(image)
    if image.mode in ("I", "F"):
        raise InvalidImage(
            f"The image has {tiff.depth_of(image)}, whose white is not defined; save it with 8 or 16 unsigned bits."
        )
    with refusing(name):
        if profiles == "convert":
            image = to_srgb(image, info.get("icc_profile"), None if "srgb" in info else info.get("gamma"))
        return _on_white(image)


def orientation_of(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 if it has none."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - unreadable metadata does not affect the pixels
        return 1
    return found if isinstance(found, int) else 1


def _rgb_from_grey16(image: Image.Image) -> Image.Image:
    """Take the high byte, as Pillow does for 16-bit colour; Pillow's own conversion would clip instead."""
    samples = np.asarray(image).astype(np.uint16)
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    grey = (samples >> (bits - 8)).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero
        grey = 255 - grey
    if isinstance(key := image.info.get("transparency"), int):
        grey[samples == key] = 255
    return Image.fromarray(grey).convert("RGB")


def _apply_colour_key(image: Image.Image, data: bytes) -> None:
    """Bring a PNG's transparent colour to the 8 bits of the pixels, or make the pixels of that colour white."""
    key, bit_depth = image.info.get("transparency"), data[png.BIT_DEPTH_AT]
    if image.mode == "L" and isinstance(key, int):
        # Only the bits of the depth count; Pillow spreads the samples to the full range.
        most = 2**bit_depth - 1
        image.info["transparency"] = (key & most) * 255 // most
    elif image.mode == "RGB" and isinstance(key, tuple):
        if bit_depth == _PNG_DEEP:
            del image.info["transparency"]
            png.whiten_deep_key(image, data, key)
        else:
            image.info["transparency"] = tuple(value & 0xFF for value in key)


def _without_empty_alpha(image: Image.Image) -> Image.Image:
    """Return a BMP as opaque if it is transparent everywhere: Windows leaves the fourth byte empty."""
    empty = image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)
    return image.convert("RGB") if empty else image


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, _WHITE)
    canvas.paste(image, mask=image)
    return canvas
