"""Random pictures, and copies as the web makes them: compressed, scaled, cropped, mirrored, brightened."""

from collections.abc import Callable
from io import BytesIO
from itertools import pairwise
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageOps

Copy = Callable[[Image.Image, np.random.Generator], Image.Image]


def scene(seed: int, width: int = 96, height: int = 72) -> Image.Image:
    """Return a picture with the spectrum of a photo: its amplitudes fall as one over the frequency."""
    chance = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.fftfreq(width) * width)
    layers = np.fft.fft2(chance.normal(size=(3, height, width))) / np.maximum(frequency, 1)
    grey, *tints = np.fft.ifft2(layers).real
    pixels = np.stack([grey + 0.3 * tint for tint in (tints[0], tints[1], -tints[0])], axis=-1)
    pixels = 128 + 45 * (pixels - pixels.mean()) / pixels.std()
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def flag(seed: int) -> Image.Image:
    """Return two to five stripes with a disc on them, on white: few colours, and edges near the border."""
    chance = np.random.default_rng(seed)
    image = Image.new("RGB", (96, 96), "white")
    draw = ImageDraw.Draw(image)
    top, bottom = int(chance.integers(4, 24)), int(chance.integers(70, 92))
    stripes, upright = int(chance.integers(2, 6)), bool(chance.integers(2))
    edges = np.linspace(4 if upright else top, 92 if upright else bottom, stripes + 1).tolist()
    for first, last in pairwise(edges):
        box = (first, top, last, bottom) if upright else (4, first, 92, last)
        draw.rectangle(box, fill=_colour(chance))
    across, down, radius = (int(value) for value in (*chance.integers(20, 76, 2), chance.integers(6, 18)))
    draw.ellipse((across - radius, down - radius, across + radius, down + radius), fill=_colour(chance))
    return image


def _colour(chance: np.random.Generator) -> tuple[int, ...]:
    return tuple(int(value) for value in chance.integers(0, 256, 3))


def compressed(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Return the picture after JPEG of quality 60."""
    stream = BytesIO()
    image.save(stream, "JPEG", quality=60)
    return Image.open(BytesIO(stream.getvalue())).convert("RGB")


def cropped(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Return nine tenths of each side, at any place."""
    width, height = (round(0.9 * side) for side in image.size)
    left, top = (int(chance.integers(rest + 1)) for rest in (image.width - width, image.height - height))
    return image.crop((left, top, left + width, top + height))


def scaled(factor: float) -> Copy:
    """Return what scales a picture."""
    return lambda image, _: image.resize(
        (round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC
    )


def brightened(factor: float) -> Copy:
    """Return what multiplies all values."""
    return lambda image, _: image.point(lambda value: min(255, round(value * factor)))


def everything(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """Return the picture cropped, mirrored, scaled, brightened and compressed."""
    found = ImageOps.mirror(cropped(image, chance))
    found = scaled(chance.uniform(0.75, 1.3))(found, chance)
    return compressed(brightened(chance.uniform(0.9, 1.1))(found, chance), chance)


COPIES: Final[dict[str, Copy]] = {
    "JPEG q60": compressed,
    "scaled × 0.75": scaled(0.75),
    "scaled × 1.3": scaled(1.3),
    "cropped by 10%": cropped,
    "mirrored": lambda image, _: ImageOps.mirror(image),
    "darker by 10%": brightened(0.9),
    "brighter by 10%": brightened(1.1),
    "all at once": everything,
}
