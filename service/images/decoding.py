"""Untrusted bytes → uint8 `[height, width, 3]`, or one of this service's errors and no other.

The order makes it safe: count the bytes, recognise the format by its signature, read the size from the header, and only
then decode the pixels, with the one decoder of that format. The encoding does not change the answer: a picture rotated
by EXIF, CMYK, 16-bit, palette, grey or transparent (it is put on white) gives the pixels of the upright sRGB picture.
Of an animation, the first frame is used. Embedded ICC profiles are ignored, as in CLIP's own preprocessing.

Preprocessing `exact` is CLIP's reference to the bit; `fast` decodes no more of a JPEG than the encoder's input needs
(docs/preprocessing.md measures the difference).
"""

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from PIL import ExifTags, Image, features

from service.errors import ConfigurationError, InvalidImage, PayloadTooLarge, UnsupportedImageFormat
from service.images.jpeg import MARGIN, check_scans, shrink
from service.model.arrays import Pixels
from service.model.choices import Preprocessing
from service.model.manifest import ImageSection
from service.model.resizing import covering_size, preprocess, preprocess_window

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
"""Names of the accepted formats, in Pillow's spelling; with AVIF if this build of Pillow has it."""

_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED: Final = (5, 6, 7, 8)
_RIGHT_TO_LEFT, _BOTTOM_TO_TOP = (2, 3, 6, 7), (3, 4, 7, 8)
"""Orientations in which the stored left, or top, is shown on the opposite side."""
_WHITE: Final = (255, 255, 255)
_PNG_BIT_DEPTH_AT = 24  # the header chunk is always first
_PNG_GREY_STEPS: Final = {2: 85, 4: 17}
_PNG_DEEP = 16

_PILLOW_LIMIT: Final = 2 * (Image.MAX_IMAGE_PIXELS or 2**62)

# Pillow warns of unusual metadata and of large headers. The former do not affect the pixels, the latter are refused
# here; neither belongs on a service's standard error stream.
warnings.filterwarnings("ignore", module=r"PIL\b")


@dataclass(frozen=True)
class ImageLimits:
    """Limits on one image. At its peak, decoding takes 8 to 16 bytes of memory for each pixel.

    Raises ConfigurationError if `max_pixels` is above Pillow's own limit, 178,956,970.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000

    def __post_init__(self) -> None:
        """Refuse a limit above Pillow's."""
        if self.max_pixels > _PILLOW_LIMIT:
            raise ConfigurationError(f"max_pixels can be at most {_PILLOW_LIMIT}; Pillow refuses larger images.")


DEFAULT_LIMITS: Final = ImageLimits()


def decode(
    data: bytes, section: ImageSection, limits: ImageLimits = DEFAULT_LIMITS, preprocessing: Preprocessing = "exact"
) -> Pixels:
    """Turn an uploaded image into the image encoder's input: uint8 `[height, width, 3]`. Thread-safe.

    Raises:
        PayloadTooLarge: more bytes than the limit.
        UnsupportedImageFormat: not one of `FORMATS` by its content; names and content types are ignored.
        InvalidImage: corrupt, truncated, or more pixels than the limit.
    """
    return Undecoded(data, section, limits, preprocessing).decode()


def open_rgb(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode an image: upright, mode RGB, on white where transparent. Thread-safe; raises what `decode` raises."""
    name, image = _open(data, limits)
    if name == "JPEG":
        check_scans(image, data, max_pixels=limits.max_pixels)
    return _loaded(name, image, data)


class Undecoded:
    """An image whose bytes and header passed every check, not yet decoded. For one thread at a time.

    Attributes:
        pixels: number of pixels that `decode` will hold in memory.
    """

    def __init__(
        self,
        data: bytes,
        section: ImageSection,
        limits: ImageLimits = DEFAULT_LIMITS,
        preprocessing: Preprocessing = "exact",
        *,
        margin: float = MARGIN,
    ) -> None:
        """Check bytes and header. Raises as `decode`; `margin` is that of `jpeg.shrink`."""
        self._name, self._image = _open(data, limits)
        self._data, self._section, self._preprocessing = data, section, preprocessing
        self._size = self._image.size
        self._scale = 1
        self.pixels = math.prod(self._size)
        if self._name == "JPEG":
            by_rows = check_scans(self._image, data, max_pixels=limits.max_pixels)
            if preprocessing == "fast":
                self._scale = shrink(self._image, self._wanted(), margin)
                if by_rows:
                    self.pixels = math.prod(self._image.size)

    def decode(self) -> Pixels:
        """Decode, resize and crop: uint8 `[height, width, 3]`. Raises InvalidImage if the image is corrupt."""
        image = _loaded(self._name, self._image, self._data)
        if self._preprocessing == "exact":
            return preprocess(image, self._section)
        if self._scale == 1:
            return preprocess_window(image, self._section, image.size, (0, 0, *image.size))
        # Sides of a smaller scale are rounded up, so the picture covers only a part of the last row and column.
        orientation, whole = _orientation(self._image), self._upright_size()
        width, height = (side / self._scale for side in whole)
        left = image.width - width if orientation in _RIGHT_TO_LEFT else 0.0
        top = image.height - height if orientation in _BOTTOM_TO_TOP else 0.0
        return preprocess_window(image, self._section, whole, (left, top, left + width, top + height))

    def _upright_size(self) -> tuple[int, int]:
        return self._as_turned(self._size)

    def _wanted(self) -> tuple[int, int]:
        size = (self._section.width, self._section.height)
        return self._as_turned(size if self._section.resize == "squash" else covering_size(self._upright_size(), size))

    def _as_turned(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[::-1] if _orientation(self._image) in _TURNED else size


def _format_of(data: bytes) -> str:
    for name in FORMATS:
        if _SIGNATURES[name].match(data):
            return name
    raise UnsupportedImageFormat(f"The image's format is not supported; send one of {', '.join(FORMATS)}.")


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Turn any error of a decoder into the client's error. Wrap only calls into Pillow."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise InvalidImage("The image has more pixels than the limit.") from exc
    except Exception as exc:  # decoders of damaged bytes raise anything from struct.error to MemoryError
        raise InvalidImage(f"The {name} image is corrupt, truncated or of an unsupported kind.") from exc


def _open(data: bytes, limits: ImageLimits) -> tuple[str, Image.Image]:
    """Check bytes and header; return the format and the undecoded image."""
    if len(data) > limits.max_bytes:
        raise PayloadTooLarge(f"The image has {len(data)} bytes; the limit is {limits.max_bytes}.")
    if not data:
        raise InvalidImage("The image is empty.")
    name = _format_of(data)
    with _refusing(name):
        # The signature decided: no other decoder sees these bytes, and Pillow's probing order does not matter.
        image: Image.Image = Image.open(BytesIO(data), formats=[name])
    width, height = image.size
    if width < 1 or height < 1:
        raise InvalidImage("The image has no pixels.")
    if width * height > limits.max_pixels:
        raise InvalidImage(f"The image has {width}x{height} pixels; the limit is {limits.max_pixels} in all.")
    return name, image


def _loaded(name: str, image: Image.Image, data: bytes) -> Image.Image:
    """Decode: upright, mode RGB, on white where transparent."""
    with _refusing(name):
        image.load()
    method = _UPRIGHT.get(_orientation(image))
    image = image if method is None else image.transpose(method)
    if image.mode.startswith("I;16"):
        return _rgb_from_grey16(image)
    if image.mode in ("I", "F"):
        raise InvalidImage("The image has samples of 32 bits, which have no defined white; save it with 8 or 16 bits.")
    if name == "PNG":
        _scale_colour_key(image, bit_depth=data[_PNG_BIT_DEPTH_AT])
    with _refusing(name):
        return _on_white(image)


def _orientation(image: Image.Image) -> int:
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


def _scale_colour_key(image: Image.Image, *, bit_depth: int) -> None:
    """Convert a PNG's transparent colour to the 8 bits to which Pillow converted the pixels."""
    key = image.info.get("transparency")
    if image.mode == "L" and isinstance(key, int) and bit_depth in _PNG_GREY_STEPS:
        image.info["transparency"] = key * _PNG_GREY_STEPS[bit_depth]
    elif image.mode == "RGB" and isinstance(key, tuple) and bit_depth == _PNG_DEEP:
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, _WHITE)
    canvas.paste(image, mask=image)
    return canvas
