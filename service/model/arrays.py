"""Types of the arrays that pass between tokenizer, decoder, encoders and scoring, and the check of stored vectors."""

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""Pictures as an image encoder reads them, `[height, width, 3]` or a batch of these."""
Ids: TypeAlias = npt.NDArray[np.int64]
"""Token ids as a text encoder reads them, `[texts, length]`."""
Vectors: TypeAlias = npt.NDArray[np.float32]
"""Embeddings of unit length, `[rows, dim]` or `[dim]`, and the cosines and scores made of them."""
Indices: TypeAlias = npt.NDArray[np.intp]
"""Positions in an array."""

STORED_FLOAT32: Final = np.dtype("<f4")
"""Byte format of vectors that are stored or sent: little-endian on every machine."""

_UNIT_TOLERANCE: Final = 1e-3
"""Class vectors are normalised in float32; only damage, or something that is no class vector, is further off."""


def of_unit_length(vectors: Vectors) -> npt.NDArray[np.bool_]:
    """Return for each row of `[rows, dim]` whether it has unit length; NaN, infinity and overflow do not."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths: Vectors = np.sqrt(np.vecdot(vectors, vectors))
    is_unit: npt.NDArray[np.bool_] = np.abs(lengths - 1) < _UNIT_TOLERANCE
    return is_unit
