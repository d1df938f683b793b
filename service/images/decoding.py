"""Untrusted bytes → uint8 `[height, width, 3]`, or one of this service's errors and no other.

The order makes it safe: count the bytes, recognise the format by its signature, read the size from the header, and only
then decode the pixels, with the one decoder of that format. The encoding does not change the answer: a picture rotated
by EXIF, CMYK, 16-bit, palette, grey or transparent (it is put on white) gives the pixels of the upright sRGB picture.
Of an animation, the first frame is used. Embedded ICC profiles are ignored, as in CLIP's own
preprocessing, unless `profiles` is `convert`.

Preprocessing `exact` is CLIP's reference to the bit; `fast` decodes no more of a JPEG than the encoder's input needs
(docs/preprocessing.md measures the difference).
"""

import math
import warnings
from dataclasses import dataclass
from typing import Final, NamedTuple

from PIL import Image

from service.errors import ConfigurationError, InvalidImage, PayloadTooLarge
from service.images import jpeg, png, tiff
from service.images.formats import format_of
from service.images.upright import opened, orientation_of, rgb_of
from service.model.arrays import Pixels
from service.model.choices import ColourProfiles, Preprocessing
from service.model.manifest import ImageSection
from service.model.resizing import preprocess, preprocess_window, resized_size

_TURNED: Final = (5, 6, 7, 8)
_RIGHT_TO_LEFT, _BOTTOM_TO_TOP = (2, 3, 6, 7), (3, 4, 7, 8)
"""Orientations in which the stored left, or top, is shown on the opposite side."""

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
        UnsupportedImageFormat: not one of `formats.FORMATS` by its content; names and content types are ignored.
        InvalidImage: corrupt, truncated, or more pixels than the limit.
    """
    return Undecoded(data, section, limits, preprocessing).decode()


def open_rgb(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, profiles: ColourProfiles = "ignore") -> Image.Image:
    """Decode an image: upright, mode RGB, on white where transparent. Thread-safe; raises what `decode` raises."""
    found = _open(data, limits, profiles)
    return rgb_of(found.name, found.image, found.data, doubtful=found.doubtful, profiles=profiles)


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
        profiles: ColourProfiles = "ignore",
        *,
        margin: float = jpeg.MARGIN,
    ) -> None:
        """Check bytes and header. Raises as `decode`; `margin` is that of `jpeg.shrink`."""
        self._opened = _open(data, limits, profiles)
        self._image = self._opened.image
        self._section, self._preprocessing, self._profiles = section, preprocessing, profiles
        self._size = self._image.size
        self._scale = 1
        self.pixels = math.prod(self._size)
        if self._opened.name == "JPEG" and preprocessing == "fast":
            self._scale = jpeg.shrink(self._image, self._wanted(), margin)
            if self._opened.by_rows:
                self.pixels = math.prod(self._image.size)

    def decode(self) -> Pixels:
        """Decode, resize and crop: uint8 `[height, width, 3]`. Raises InvalidImage if the image is corrupt."""
        image = rgb_of(
            self._opened.name,
            self._image,
            self._opened.data,
            doubtful=self._opened.doubtful,
            profiles=self._profiles,
        )
        if self._preprocessing == "exact":
            return preprocess(image, self._section)
        if self._scale == 1:
            return preprocess_window(image, self._section, image.size, (0, 0, *image.size))
        # Sides of a smaller scale are rounded up, so the picture covers only a part of the last row and column.
        orientation, whole = orientation_of(self._image), self._upright_size()
        width, height = (side / self._scale for side in whole)
        left = image.width - width if orientation in _RIGHT_TO_LEFT else 0.0
        top = image.height - height if orientation in _BOTTOM_TO_TOP else 0.0
        return preprocess_window(image, self._section, whole, (left, top, left + width, top + height))

    def _upright_size(self) -> tuple[int, int]:
        return self._as_turned(self._size)

    def _wanted(self) -> tuple[int, int]:
        return self._as_turned(resized_size(self._upright_size(), self._section))

    def _as_turned(self, size: tuple[int, int]) -> tuple[int, int]:
        return size[::-1] if orientation_of(self._image) in _TURNED else size


class _Opened(NamedTuple):
    """An undecoded image, and the bytes that it is read from, less those dropped.

    `by_rows` and `doubtful` are of a JPEG: see `jpeg.Layout` and `rgb_of`.
    """

    name: str
    image: Image.Image
    data: bytes
    by_rows: bool = False
    doubtful: bool = False


def _open(data: bytes, limits: ImageLimits, profiles: ColourProfiles) -> _Opened:
    """Check bytes and header."""
    if len(data) > limits.max_bytes:
        raise PayloadTooLarge(f"The image has {len(data)} bytes; the limit is {limits.max_bytes}.")
    if not data:
        raise InvalidImage("The image is empty.")
    name = format_of(data)
    if name == "PNG":
        data = png.without_metadata(data, colours=profiles == "convert")
    elif name == "TIFF":
        tiff.check_no_raw_file(data)
    image, data = opened(name, data)
    width, height = image.size
    if width < 1 or height < 1:
        raise InvalidImage("The image has no pixels.")
    if width * height > limits.max_pixels:
        raise InvalidImage(f"The image has {width}x{height} pixels; the limit is {limits.max_pixels} in all.")
    return _opened_jpeg(image, data, limits) if name == "JPEG" else _Opened(name, image, data)


def _opened_jpeg(image: Image.Image, data: bytes, limits: ImageLimits) -> _Opened:
    """Check the scans, and put the end marker where it is missing."""
    layout = jpeg.layout_of(image, data, max_pixels=limits.max_pixels)
    if layout.end is None and layout.huffman and (whole := jpeg.ended(data, layers=len(image.getbands()))):
        return _Opened("JPEG", *opened("JPEG", whole), layout.by_rows, doubtful=True)
    return _Opened("JPEG", image, data, layout.by_rows)
