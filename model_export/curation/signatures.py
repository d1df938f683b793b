"""Signatures of pictures, of fixed size: a digest of the pixels, and the low frequencies of a reduction.

The second is a perceptual hash (pHash) before its last step: 10 × 10 coefficients of the discrete cosine transform of a
32 × 32 reduction of the brightness, and 3 × 3 of each colour difference, a byte each. Hashes of mirrored and cropped
copies follow from it (`near`), which the 64 bits of a pHash do not allow.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image

from model_export.curation.stage import ID, IMAGE, StageResult, digest_of
from model_export.errors import CurationError
from service.errors import AnyclassError
from service.images.decoding import ImageLimits, open_rgb

_VERSION: Final = 1
BROKEN: Final = "broken picture"

PIXELS: Final = "pixels"
EXACT: Final = "exact"
NEAR: Final = "near"

SIDE: Final = 32
"""Sides of the reduction."""
LUMA: Final = 10
CHROMA: Final = 3
"""Frequencies of brightness, and of each colour difference, in each direction."""
EXACT_BYTES: Final = 16
NEAR_BYTES: Final = LUMA**2 + 2 * CHROMA**2

SCHEMA: Final = pa.schema(
    [
        (ID, pa.string()),
        (PIXELS, pa.int64()),
        (EXACT, pa.binary(EXACT_BYTES)),
        (NEAR, pa.binary(NEAR_BYTES)),
    ]
)


class Signature(NamedTuple):
    """Signature of a picture.

    Attributes:
        pixels: width times height.
        exact: digest of width, height and RGB pixels.
        near: coefficients, int8 as bytes: the root of each, doubled, with its sign.
    """

    pixels: int
    exact: bytes
    near: bytes


def cosines(frequencies: int) -> npt.NDArray[np.float64]:
    """Return the first rows of the orthonormal cosine transform of `SIDE` points: ``[frequencies, SIDE]``."""
    rows, points = np.arange(frequencies)[:, None], np.arange(SIDE) + 0.5
    table: npt.NDArray[np.float64] = np.cos(np.pi * rows * points / SIDE) * np.sqrt(2 / SIDE)
    table[0] /= np.sqrt(2)
    return table


_SCALE: Final = 2**12
# Whole numbers below 2**53: sums are exact in any order, so signatures are the same on every machine.
_LUMA: Final = np.rint(cosines(LUMA) * _SCALE)
_CHROMA: Final = _LUMA[:CHROMA]
_WEIGHTS: Final = np.array([77.0, 150.0, 29.0])
_WEIGHT: Final = 256.0


def signature(image: Image.Image) -> Signature:
    """Return the signature of an RGB picture."""
    digest = hashlib.blake2b(f"{image.width}x{image.height}".encode(), digest_size=EXACT_BYTES)
    digest.update(image.tobytes())
    small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.float64)  # [32, 32, 3]
    luma = small @ _WEIGHTS
    blue, red = (small[..., channel] * _WEIGHT - luma for channel in (2, 0))
    parts = [_LUMA @ luma @ _LUMA.T, *(_CHROMA @ colour @ _CHROMA.T for colour in (blue, red))]
    found = np.concatenate([part.ravel() for part in parts]) / (_WEIGHT * _SCALE**2)
    coded = np.clip(np.rint(2 * np.sign(found) * np.sqrt(np.abs(found))), -127, 127)
    return Signature(image.width * image.height, digest.digest(), coded.astype(np.int8).tobytes())


def coefficients(near: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """Return the coefficients that signatures stand for, float32 ``[…, NEAR_BYTES]``."""
    coded = near.astype(np.float32)
    return coded * np.abs(coded) / np.float32(4)


@dataclass(frozen=True)
class Sign:
    """Stage that puts signatures in the place of pictures: `SCHEMA`; a broken picture has nulls.

    Attributes:
        max_pixels: more are refused as broken, before they are decoded.
    """

    max_pixels: int = 50_000_000
    name: str = field(default="sign", init=False)

    @property
    def digest(self) -> str:
        """Return a hash of version and settings."""
        return digest_of(self.name, _VERSION, {"max_pixels": self.max_pixels})

    def run(self, table: pa.Table) -> StageResult:
        """Return a signature for each row.

        Raises:
            CurationError: the pairs have no pictures.
        """
        if IMAGE not in table.column_names:
            raise CurationError(f"no column {IMAGE!r} of encoded pictures; copies are found by pictures")
        limits = ImageLimits(max_pixels=self.max_pixels)
        found = [_signed(each.as_py(), limits) for each in table[IMAGE]]
        columns = [pa.array([each and each[at] for each in found], SCHEMA.types[at + 1]) for at in range(3)]
        broken = found.count(None)
        signed = pa.table([table[ID], *columns], schema=SCHEMA)
        return StageResult(signed, {}, {BROKEN: broken} if broken else {})


def _signed(data: bytes | None, limits: ImageLimits) -> Signature | None:
    if data is None:
        return None
    try:
        return signature(open_rgb(data, limits))
    except AnyclassError:
        return None
