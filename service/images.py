"""Untrusted bytes → uint8 `[height, width, 3]`, or one of our errors and nothing else.

The order is what makes it safe: bytes counted, format told by its signature, size read from the header, and only then
are pixels decoded, by the one decoder of that format. What is encoded does not matter to the answer: a picture that is
rotated by EXIF, CMYK, 16-bit, palette, grey or transparent (it is put on white) answers as the upright sRGB picture
does. Of an animation, the first frame is used. Embedded ICC profiles are ignored, as CLIP's own preprocessing does.
"""

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, features

from service.errors import ConfigurationError, InvalidImage, PayloadTooLarge, UnsupportedImageFormat
from service.manifest import ImageSection

Pixels: TypeAlias = npt.NDArray[np.uint8]

_SIGNATURES: Final = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]"),
    "AVIF": re.compile(rb"....ftyp(?:....){0,16}?avi[fs]", re.DOTALL),
}
FORMATS: Final = tuple(name for name in _SIGNATURES if name != "AVIF" or features.check("avif"))
"""Names of the accepted formats, in Pillow's spelling; AVIF where this build of Pillow has it."""

_RESAMPLING: Final = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
_FILTER_RADIUS: Final = 3  # in pixels of the smaller scale; Lanczos has the widest
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE: Final = (255, 255, 255)
_JPEG_MARKER: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_START, _JPEG_END, _JPEG_SCAN, _JPEG_TEMPORARY = 0xD8, 0xD9, 0xDA, 0x01
_JPEG_SCANS_AT_FULL_SIZE: Final = 16
_PNG_BIT_DEPTH_AT = 24  # the header chunk is always first
_PNG_GREY_STEPS: Final = {2: 85, 4: 17}
_PNG_DEEP = 16
_INTERMEDIATE_PIXELS: Final = 2**23
"""Resizing goes CLIP's exact way while no intermediate picture has more pixels than this (32 MiB)."""

_PILLOW_LIMIT: Final = 2 * (Image.MAX_IMAGE_PIXELS or 2**62)

# Pillow warns of oddities in metadata and of large headers. The first do not concern the pixels, the second are
# refused here; neither belongs on the standard error stream of a service.
warnings.filterwarnings("ignore", module=r"PIL\b")


@dataclass(frozen=True)
class ImageLimits:
    """What one image may cost. At its peak, decoding takes 8 to 16 bytes of memory for each pixel.

    Raises ConfigurationError where `max_pixels` is above what Pillow itself refuses, 178,956,970.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        """Refuse a limit that could not be kept."""
        if self.max_pixels > _PILLOW_LIMIT:
            raise ConfigurationError(f"max_pixels can be at most {_PILLOW_LIMIT}; Pillow refuses larger images.")


DEFAULT_LIMITS: Final = ImageLimits()


def decode(data: bytes, section: ImageSection, limits: ImageLimits = DEFAULT_LIMITS) -> Pixels:
    """Turn an uploaded image into the image encoder's input: uint8 `[height, width, 3]`. Thread-safe.

    Raises:
        PayloadTooLarge: more bytes than the limit.
        UnsupportedImageFormat: not one of `FORMATS`, going by the content; names and content types are not asked.
        InvalidImage: corrupt, truncated, or more pixels than the limit.
    """
    return preprocess(open_rgb(data, limits), section)


def open_rgb(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode an image: upright, mode RGB, on white where transparent. Thread-safe; raises what `decode` raises."""
    if len(data) > limits.max_bytes:
        raise PayloadTooLarge(f"The image has {len(data)} bytes; the limit is {limits.max_bytes}.")
    if not data:
        raise InvalidImage("The image is empty.")
    name = _format_of(data)
    with _refusing(name):
        # The signature has chosen: no other decoder sees these bytes, and Pillow's probing order does not matter.
        image: Image.Image = Image.open(BytesIO(data), formats=[name])
    width, height = image.size
    if width < 1 or height < 1:
        raise InvalidImage("The image has no pixels.")
    if width * height > limits.max_pixels:
        raise InvalidImage(f"The image has {width}x{height} pixels; the limit is {limits.max_pixels} in all.")
    if name == "JPEG":
        _check_scans(data, most=_JPEG_SCANS_AT_FULL_SIZE * limits.max_pixels // (width * height))
    with _refusing(name):
        image.load()
    image = _upright(image)
    if image.mode.startswith("I;16"):
        return _rgb_from_grey16(image)
    if image.mode in ("I", "F"):
        raise InvalidImage("The image has samples of 32 bits, which have no defined white; save it with 8 or 16 bits.")
    if name == "PNG":
        _scale_colour_key(image, bit_depth=data[_PNG_BIT_DEPTH_AT])
    with _refusing(name):
        return _on_white(image)


def preprocess(image: Image.Image, section: ImageSection) -> Pixels:
    """Resize and crop as the manifest says: mode RGB in, uint8 `[height, width, 3]` out.

    CLIP's reference, to the bit: torchvision's `Resize` on PIL images, which filters with antialiasing, then
    `CenterCrop`, with their rounding. For an input that is not square, `shortest` is the smallest size that covers it.
    Only a picture so narrow that the whole resized picture would not fit in 32 MiB takes another way to the
    same pixels, give or take one level of rounding.
    """
    if image.mode != "RGB":
        raise ValueError(f"preprocess takes RGB, not {image.mode}")
    size = (section.width, section.height)
    resampling = _RESAMPLING[section.interpolation]
    if section.resize == "squash":
        return np.array(image.resize(size, resampling))
    scaled = _covering_size(image.size, size)
    left, top = (round((scaled[axis] - size[axis]) / 2) for axis in (0, 1))
    if math.prod(scaled) > _INTERMEDIATE_PIXELS:
        return np.array(_resized_window(image, scaled, (left, top), size, resampling))
    resized = image.resize(scaled, resampling)
    return np.array(resized.crop((left, top, left + size[0], top + size[1])))


def _format_of(data: bytes) -> str:
    for name in FORMATS:
        if _SIGNATURES[name].match(data):
            return name
    raise UnsupportedImageFormat(f"This is not an image of a format that is read here: {', '.join(FORMATS)}.")


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into the client's error; only calls into Pillow may stand in it."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise InvalidImage("The image has more pixels than the limit.") from exc
    except Exception as exc:  # decoders of damaged bytes raise anything from struct.error to MemoryError
        raise InvalidImage(f"The {name} image is corrupt, truncated or of a kind that cannot be read.") from exc


def _check_scans(data: bytes, *, most: int) -> None:
    """Refuse a progressive JPEG with so many scans over its pixels that a few bytes cost minutes."""
    scans, position = 0, 2
    while found := _JPEG_MARKER.search(data, position):
        marker, position = data[found.start() + 1], found.end()
        if marker == _JPEG_END:  # what follows is not decoded
            return
        if marker == _JPEG_SCAN:
            scans += 1
            if scans > most:
                raise InvalidImage(f"The JPEG image has more than {most} scans; save it anew.")
        if marker not in (_JPEG_START, _JPEG_TEMPORARY):  # the others have a length; their content is no marker
            position += int.from_bytes(data[position : position + 2], "big")


def _upright(image: Image.Image) -> Image.Image:
    try:
        method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - metadata that cannot be read says nothing about the pixels
        return image
    return image if method is None else image.transpose(method)


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


def _scale_colour_key(image: Image.Image, *, bit_depth: int) -> None:
    """Bring a PNG's transparent colour to the 8 bits that Pillow has brought the pixels to."""
    key = image.info.get("transparency")
    if image.mode == "L" and isinstance(key, int) and bit_depth in _PNG_GREY_STEPS:
        image.info["transparency"] = key * _PNG_GREY_STEPS[bit_depth]
    elif image.mode == "RGB" and isinstance(key, tuple) and bit_depth == _PNG_DEEP:
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, _WHITE)
    canvas.paste(image, mask=image)
    return canvas


def _covering_size(source: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Scale `source` until it just covers `size`; the long side is cut off to an integer, as torchvision does."""
    (width, height), (to_width, to_height) = source, size
    if width * to_height <= height * to_width:
        return to_width, max(to_height, int(to_width * height / width))
    return max(to_width, int(to_height * width / height)), to_height


def _resized_window(
    image: Image.Image,
    scaled: tuple[int, int],
    corner: tuple[int, int],
    size: tuple[int, int],
    resampling: Image.Resampling,
) -> Image.Image:
    """Resize only the part of the picture that the crop will keep, with all pixels that its filter reaches."""
    (x0, x1), (left, right) = _reach(image.width, scaled[0], corner[0], size[0])
    (y0, y1), (top, bottom) = _reach(image.height, scaled[1], corner[1], size[1])
    return image.crop((x0, y0, x1, y1)).resize(size, resampling, box=(left, top, right, bottom))


def _reach(source: int, scaled: int, offset: int, kept: int) -> tuple[tuple[int, int], tuple[float, float]]:
    """Along one axis: the source pixels to keep, and within these the span that becomes the `kept` pixels."""
    factor = source / scaled
    margin = _FILTER_RADIUS * max(factor, 1.0) + 1
    first, last = offset * factor, min((offset + kept) * factor, source)
    start, end = max(0, math.floor(first - margin)), min(source, math.ceil(last + margin))
    return (start, end), (first - start, last - start)
