"""Views of a picture, from its signature: whole, mirrored, or through a window; their hash bits, and how alike two are.

A hash has a bit for each of `POOL` low frequencies: whether the coefficient is above a threshold. A crop is a window of
its original, so its hash is near that of one of the original's views, and its coefficients are near that view's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from model_export.curation.signatures import CHROMA, LUMA, SIDE, coefficients

Codes = npt.NDArray[np.uint64]
Coded = npt.NDArray[np.int8]
Floats = npt.NDArray[np.float32]
Bits = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]

BAND: Final = 8
"""Frequencies of a view, in each direction."""
POOL: Final = 36

_THRESHOLD: Final = 8.0
_WINDOW: Final = 0.9
_OFFSETS: Final = (0.0, 0.025, 0.05, 0.075, 0.1)
_POINTS: Final = 64
_MOST_BITS: Final = 6
_MOST_GAIN: Final = 1.65
_MOST_COLOUR: Final = 0.4
_LEAST_COLOUR: Final = 200.0


def _window(start: float, length: float) -> npt.NDArray[np.float64]:
    """Return the matrix from frequencies of a side to those of a part of it: ``[BAND, LUMA]``."""
    places = start + length * (np.arange(_POINTS) + 0.5) / _POINTS
    waves = np.cos(np.pi * np.arange(LUMA)[:, None] * places) * np.sqrt(2 / SIDE)
    waves[0] /= np.sqrt(2)
    back = np.cos(np.pi * np.arange(BAND)[:, None] * (np.arange(_POINTS) + 0.5) / _POINTS) * np.sqrt(2 / SIDE)
    back[0] /= np.sqrt(2)
    matrix: npt.NDArray[np.float64] = back @ waves.T * (SIDE / _POINTS)
    return matrix


def _views(out: int, given: int) -> Floats:
    """Return matrices from coefficients ``[given²]`` to those of each view ``[out²]``: ``[views, out², given²]``.

    The first view is the whole picture.
    """
    whole = np.eye(out, given)
    parts = [_window(start, _WINDOW)[:out, :given] for start in _OFFSETS]
    pairs = [(whole, whole), *((down, across) for down in parts for across in parts)]
    return np.stack([np.kron(down, across) for down, across in pairs]).astype(np.float32)


def _by_frequency() -> Rows:
    """Return the places of a view's coefficients but the mean, from low frequencies to high: ``[BAND² - 1]``."""
    down, across = np.divmod(np.arange(BAND**2), BAND)
    return np.lexsort((np.arange(BAND**2), np.abs(down - across), down + across))[1:]


def _mirror() -> Floats:
    """Return the sign of each coefficient of a signature in the mirror image."""
    signs = [np.tile((-1.0) ** np.arange(size), size) for size in (LUMA, CHROMA, CHROMA)]
    return np.concatenate(signs).astype(np.float32)


_VIEWS: Final = _views(BAND, LUMA)
_COLOUR_VIEWS: Final = _views(CHROMA, CHROMA)
VIEWS: Final = len(_VIEWS)
_ORDER: Final = _by_frequency()
_HASHED: Final = np.ascontiguousarray(_VIEWS[:, _ORDER[:POOL]].reshape(-1, LUMA**2).T)  # [LUMA², views · POOL]
_MIRROR: Final = _mirror()
_POWERS: Final = 2.0 ** np.arange(POOL)
_LIFTS: Final = np.hypot(1, np.hypot(*np.divmod(np.arange(BAND**2), BAND))).astype(np.float32)
_LIFTS[0] = 0  # the mean
"""Weights that give high frequencies the power of low ones, as photos have about 1/f of it."""
_LIFTED: Final = np.ascontiguousarray((_VIEWS * _LIFTS[:, None]).reshape(-1, LUMA**2).T)  # [LUMA², views · BAND²]


def by_direction() -> Rows:
    """Return the hash bits by their vertical frequencies, those of one by the horizontal ones: ``[POOL]``."""
    return np.argsort(_ORDER[:POOL])


def contrasts(near: Coded) -> Floats:
    """Return the norm of the brightness without its mean: ``[n]``."""
    norms: Floats = np.linalg.norm(coefficients(near[:, 1 : LUMA**2]), axis=1)
    return norms


def view_codes(near: Coded) -> Codes:
    """Return the hash bits of each view, as numbers below 2**POOL: ``[n, VIEWS]``."""
    found = coefficients(near[:, : LUMA**2]) @ _HASHED > _THRESHOLD
    codes: Codes = (found.reshape(len(near), VIEWS, POOL) @ _POWERS).astype(np.uint64)
    return codes


@dataclass(frozen=True)
class Probes:
    """Hashes of whole pictures and of their mirror images.

    Attributes:
        codes: ``[n, 2]``.
        doubts: hash bits from the one nearest to the threshold on, ``[n, 2, POOL]``.
    """

    codes: Codes
    doubts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, near: Coded) -> Probes:
        """Hash the pictures with these signatures."""
        whole = coefficients(near) * np.stack([np.ones_like(_MIRROR), _MIRROR])[:, None]  # [2, n, …]
        luma = whole[..., : LUMA**2].reshape(2, len(near), LUMA, LUMA)[..., :BAND, :BAND]
        pool = luma.reshape(2, len(near), BAND**2)[..., _ORDER[:POOL]].transpose(1, 0, 2)
        far = np.abs(pool - _THRESHOLD) / (np.abs(pool) + _THRESHOLD)
        codes = ((pool > _THRESHOLD) @ _POWERS).astype(np.uint64)
        return cls(codes, np.argsort(far, axis=-1, kind="stable"))


def alike(copies: Coded, originals: Coded, similarity: float) -> Bits:
    """Return whether each picture is a view of another one, or of its mirror image.

    Hash bits, contrast and colours must be near; the correlation of the coefficients at least the similarity.

    Args:
        copies: signatures ``[n, NEAR_BYTES]``.
        originals: signatures ``[n, NEAR_BYTES]``.
        similarity: 0 to 1.
    """
    bits = np.bitwise_count(Probes.of(copies).codes[:, :, None] ^ view_codes(originals)[:, None]).min(axis=2)
    mirrored = bits.argmin(axis=1) == 1
    found: Bits = bits.min(axis=1) <= _MOST_BITS
    rows = np.flatnonzero(found)
    found[rows] = _measured(copies[rows], originals[rows], mirrored[rows], similarity)
    return found


def _measured(copies: Coded, originals: Coded, mirrored: Bits, similarity: float) -> Bits:
    copy = coefficients(copies) * np.where(mirrored[:, None], _MIRROR, np.float32(1))
    original = coefficients(originals)
    whole = copy[:, : LUMA**2].reshape(-1, LUMA, LUMA)[:, :BAND, :BAND].reshape(-1, BAND**2) * _LIFTS
    views = (original[:, : LUMA**2] @ _LIFTED).reshape(-1, VIEWS, BAND**2)
    norm, norms = np.linalg.norm(whole, axis=1), np.linalg.norm(views, axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        likeness = (views @ whole[:, :, None])[:, :, 0] / (norms * norm[:, None])
        best = likeness.argmax(axis=1)
        gains = norm / norms[np.arange(len(best)), best]
    colours = copy[:, LUMA**2 :].reshape(-1, 2, CHROMA**2)
    others = original[:, LUMA**2 :].reshape(-1, 2, CHROMA**2) @ _COLOUR_VIEWS[best].transpose(0, 2, 1)
    apart, mine, theirs = (np.linalg.norm(each, axis=(1, 2)) for each in (colours - others, colours, others))
    found: Bits = likeness.max(axis=1, initial=-1) >= similarity
    found &= (gains <= _MOST_GAIN) & (gains >= 1 / _MOST_GAIN)
    found &= apart <= _MOST_COLOUR * (np.maximum(mine, theirs) + _LEAST_COLOUR)
    return found
