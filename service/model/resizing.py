"""Resizes and crops RGB pictures to the image encoder's input, uint8 `[height, width, 3]`."""

import math
from typing import Final, TypeAlias

import numpy as np
from PIL import Image

from service.model.arrays import Pixels
from service.model.manifest import ImageSection

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

_RESAMPLING: Final = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
_FILTER_RADIUS: Final = 3  # in pixels of the smaller scale; Lanczos has the widest
_INTERMEDIATE_PIXELS: Final = 2**23
"""Resizing is CLIP's to the bit if the resized picture has at most so many pixels (32 MiB)."""
_LARGEST_SCALE: Final = 100.0
_SCALE_STEP: Final = 1e-5
"""Bounds and end of the search for a scale, as in SigLIP 2's preprocessing."""
_REDUCING_GAP: Final = 5.0
"""A large picture is first reduced by averaging to so many times its final size, then resized with the filter."""


def preprocess(image: Image.Image, section: ImageSection) -> Pixels:
    """Resize and crop according to the manifest: mode RGB in, uint8 `[height, width, 3]` out.

    This is CLIP's reference to the bit: torchvision's `Resize` on PIL images, which filters with antialiasing, then
    `CenterCrop`, with their rounding. For an input that is not square, `shortest` is the smallest size that covers it.
    A picture so narrow that the whole resized picture would not fit in 32 MiB is resized by window, which gives the
    same pixels within one level of rounding.
    """
    if image.mode != "RGB":
        raise ValueError(f"preprocess takes RGB, not {image.mode}")
    size = (section.width, section.height)
    resampling = _RESAMPLING[section.interpolation]
    if section.resize == "squash":
        return np.array(image.resize(size, resampling))
    if section.resize == "aspect":
        return packed(np.array(image.resize(fitting_size(image.size, section), resampling)), section)
    scaled = covering_size(image.size, size)
    left, top = (round((scaled[axis] - size[axis]) / 2) for axis in (0, 1))
    if math.prod(scaled) > _INTERMEDIATE_PIXELS:
        return np.array(_resized_window(image, scaled, (left, top), size, resampling))
    resized = image.resize(scaled, resampling)
    return np.array(resized.crop((left, top, left + size[0], top + size[1])))


def preprocess_window(image: Image.Image, section: ImageSection, whole: tuple[int, int], box: Box) -> Pixels:
    """Resize only the part that the crop keeps: nearly the pixels of `preprocess`, for less work.

    Args:
        image: mode RGB, perhaps decoded at a smaller scale.
        whole: width and height of the picture at full scale, which decide the crop.
        box: the part of `image` that holds the picture.
    """
    scaled = resized_size(whole, section)
    size = scaled if section.resize == "aspect" else (section.width, section.height)
    if math.prod(scaled) > _INTERMEDIATE_PIXELS and whole == image.size:  # Pillow's boxes are inexact at this length
        return preprocess(image, section)
    left, top, right, bottom = box
    across, down = (right - left) / scaled[0], (bottom - top) / scaled[1]
    x, y = left + across * round((scaled[0] - size[0]) / 2), top + down * round((scaled[1] - size[1]) / 2)
    kept = (x, y, min(right, x + across * size[0]), min(bottom, y + down * size[1]))
    resized = np.array(image.resize(size, _RESAMPLING[section.interpolation], kept, _REDUCING_GAP))
    return packed(resized, section) if section.resize == "aspect" else resized


def resized_size(source: tuple[int, int], section: ImageSection) -> tuple[int, int]:
    """Return the width and height of a picture before the crop, in pixels."""
    if section.resize == "aspect":
        return fitting_size(source, section)
    size = (section.width, section.height)
    return size if section.resize == "squash" else covering_size(source, size)


def fitting_size(source: tuple[int, int], section: ImageSection) -> tuple[int, int]:
    """Return the largest width and height with the aspect of `source` whose patches fit the budget.

    Both sides are rounded up to whole patches. The scale is found by halving an interval, with the same bounds and the
    same end as in SigLIP 2's preprocessing (Tschannen et al. 2025), so that the sizes are the same too.
    """
    patch = section.patch_size

    def scaled(scale: float) -> tuple[int, int]:
        width, height = (max(1, math.ceil(side * scale / patch)) for side in source)
        return width, height

    low, high = _SCALE_STEP / 10, _LARGEST_SCALE
    while high - low >= _SCALE_STEP:
        middle = (low + high) / 2
        if math.prod(scaled(middle)) <= section.patches:
            low = middle
        else:
            high = middle
    columns, rows = scaled(low)
    return columns * patch, rows * patch


def packed(pixels: Pixels, section: ImageSection) -> Pixels:
    """Turn a resized picture into the encoder's rows of patches, with its grid in the first: see `ImageSection`."""
    side = section.patch_size
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    out = np.zeros((section.height, section.width, 3), np.uint8)
    out[0, 0, :2] = rows - 1, columns - 1
    patches = pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2)  # [rows, columns, side, side, 3]
    out[1 : rows * columns + 1] = patches.reshape(rows * columns, section.width, 3)
    return out


def covering_size(source: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return `source` scaled to just cover `size`; the long side is truncated to an integer, as torchvision does."""
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
    """Resize only the part of the picture that the crop keeps, with all pixels that its filter reaches."""
    (x0, x1), (left, right) = _reach(image.width, scaled[0], corner[0], size[0])
    (y0, y1), (top, bottom) = _reach(image.height, scaled[1], corner[1], size[1])
    return image.crop((x0, y0, x1, y1)).resize(size, resampling, box=(left, top, right, bottom))


def _reach(source: int, scaled: int, offset: int, kept: int) -> tuple[tuple[int, int], tuple[float, float]]:
    """Return, for one axis, the source pixels to keep and the span within them that becomes the `kept` pixels."""
    factor = source / scaled
    margin = _FILTER_RADIUS * max(factor, 1.0) + 1
    first, last = offset * factor, min((offset + kept) * factor, source)
    start, end = max(0, math.floor(first - margin)), min(source, math.ceil(last + margin))
    return (start, end), (first - start, last - start)
