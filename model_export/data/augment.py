"""Augment images: a random crop (the paper's only one; square there), optionally a flip and a shift past the border."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn import functional

Interpolation = Literal["bicubic", "bilinear", "lanczos"]
_RESAMPLING: Final[Mapping[Interpolation, Image.Resampling]] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}
_IN_TORCH: Final = ("bicubic", "bilinear")
_LARGE: Final = 128
"""Shorter side of a crop, in pixels, from which on torch's resizing saves time."""
_MAGNIFIERS = (Image.Resampling.BICUBIC, Image.Resampling.LANCZOS, Image.Resampling.NEAREST)


@dataclass(frozen=True)
class Augmentation:
    """Random changes to a training image.

    Attributes:
        crop_area: smallest and largest area of the random square crop, as shares of the largest square.
        shift: largest reach of the crop past the border, as a share of the shorter side; filled with mirrored pixels.
        flip: mirror every image left to right in every other epoch. Two epochs then show each image both ways; chance
            would show half of them twice the same way (Jordan 2024, section 3.6).
        zoom_area: as ``crop_area``, for zoomed images; the caller sets their share at each step.
        squash: crop in the image's own proportions, for a model whose pictures are resized on both sides.
        interpolation: of the resizing, that of the model's preprocessing.
    """

    crop_area: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    flip: bool = False
    zoom_area: tuple[float, float] = (0.2, 0.9)
    squash: bool = False
    interpolation: Interpolation = "bicubic"

    def apply(
        self, image: Image.Image, size: int, rng: np.random.Generator, *, odd: bool = False, zoom_share: float = 0.0
    ) -> npt.NDArray[np.uint8]:
        """Draw one view of an RGB image: uint8 ``[size, size, 3]``.

        Args:
            image: of any size.
            size: side of the view, in pixels.
            rng: source of randomness.
            odd: mirror it if ``flip`` is set.
            zoom_share: probability of zooming into it.
        """
        if self.flip and odd:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        zoomed = zoom_share > 0 and rng.random() < zoom_share
        area = self.zoom_area if zoomed else self.crop_area
        short = min(image.size)
        share = float(np.sqrt(rng.uniform(*area)))
        whole = image.size if self.squash else (short, short)
        width, height = (min(side, max(1, round(side * share))) for side in whole)
        pad = 0 if zoomed else round(self.shift * short)
        left = int(rng.integers(image.width + 2 * pad - width + 1))
        top = int(rng.integers(image.height + 2 * pad - height + 1))
        box = (left, top, left + width, top + height)
        # With whole-pixel offsets, a crop of the target's size is a copy and needs no resampling.
        copied = width == height == size
        if pad:
            columns, rows = _mirrored(image.width, pad), _mirrored(image.height, pad)
            pixels = np.asarray(image)
            if copied:
                cropped: npt.NDArray[np.uint8] = pixels[rows[top : top + size, None], columns[left : left + size]]
                return cropped
            image = Image.fromarray(pixels[rows[:, None], columns])
        if copied:
            return np.asarray(image.crop(box))
        if not zoomed and min(width, height) >= _LARGE and self.interpolation in _IN_TORCH:
            return _resized(image.crop(box), size, self.interpolation)
        # Magnifying a small image blurs it with one filter and makes blocks with another; a real close-up has neither.
        resampling = _MAGNIFIERS[int(rng.integers(len(_MAGNIFIERS)))] if zoomed else _RESAMPLING[self.interpolation]
        return np.asarray(image.resize((size, size), resampling, box=box))


@lru_cache(maxsize=1024)
def _mirrored(side: int, pad: int) -> npt.NDArray[np.int64]:
    """Return the place of each pixel along a side that is continued past both ends, mirrored: ``[side + 2 * pad]``."""
    return np.pad(np.arange(side), pad, "reflect")


def _resized(image: Image.Image, size: int, interpolation: Interpolation) -> npt.NDArray[np.uint8]:
    """Resize with Pillow's filter in a third of its time; a few values in a thousand differ, nearly all by one."""
    planes = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    resized = functional.interpolate(planes, (size, size), mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def is_odd(row: int, epoch: int) -> bool:
    """Return whether an epoch mirrors a row: half of the rows are mirrored in even epochs, the others in odd ones."""
    # A bit of a Weyl sequence halves any stretch of rows and cannot fall in step with a period of the data.
    return bool(((row * 0x9E3779B97F4A7C15 >> 40) + epoch) & 1)
