"""A bundle's probes: a few inputs, and the vectors that every correct provider computes from them.

They detect a provider that runs but rewrites the graph wrongly (``docs/adr/0010-providers.md`` names a case). Exports
write them (``docs/adr/0005-a-bundle-carries-its-reference.md``); `model_export` verifies with all of them.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from service.errors import BundleError
from service.model.arrays import STORED_FLOAT32, Ids, Pixels, Vectors
from service.model.loading import Bundle

PROBES: Final = "probes.safetensors"
IMAGES: Final = 7

_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {"F32": STORED_FLOAT32, "I64": np.dtype("<i8")}
_LENGTH_BYTES: Final = 8


@dataclass(frozen=True)
class Probes:
    """Inputs and the expected vectors.

    Attributes:
        pixels: uint8 `[images, height, width, 3]`.
        ids: int64 `[texts, length]`.
        image_vectors, text_vectors: float32 `[images, dim]` and `[texts, dim]`, of unit length.
    """

    pixels: Pixels
    ids: Ids
    image_vectors: Vectors
    text_vectors: Vectors


def probe_pictures(height: int, width: int) -> Pixels:
    """Return pictures from a hash, the same on every machine and NumPy release: `[IMAGES, height, width, 3]`."""
    size = height * width * 3
    noise = np.frombuffer(hashlib.shake_256(b"anyclass").digest(IMAGES * size), dtype=np.uint8)
    pictures = noise.reshape(IMAGES, height, width, 3).copy()
    for i in range(1, IMAGES):
        # Squares of 2, 4, 8, … pixels: an image encoder cannot tell one noise from another.
        rows = np.arange(height) >> i
        columns = np.arange(width) >> i
        pictures[i] = pictures[i][rows][:, columns]
    return pictures


def quick_probes(bundle: Bundle, *, images: int = 2, texts: int = 2) -> Probes | None:
    """Read the cheapest probes of a bundle, or None if it has none.

    Raises:
        BundleError: the file cannot be read, or does not match the manifest.
    """
    if PROBES not in bundle.manifest.files:
        return None
    manifest, path = bundle.manifest, bundle.path / PROBES
    arrays = _read_safetensors(path)
    try:
        ids, lengths = arrays["ids"], arrays["lengths"]
        image_vectors, text_vectors = arrays["image_vectors"], arrays["text_vectors"]
        # From noise to large squares, the extremes first.
        chosen = np.linspace(0, IMAGES - 1, images).round().astype(int)
        length = manifest.text.max_length
        if manifest.text.padding == "longest":
            length = max(manifest.text.min_length, int(lengths[:texts].max()))
        return Probes(
            probe_pictures(manifest.image.height, manifest.image.width)[chosen],
            np.ascontiguousarray(ids[:texts, :length]),
            image_vectors[chosen].reshape(images, manifest.dim),
            text_vectors[:texts].reshape(-1, manifest.dim),
        )
    except (KeyError, IndexError, ValueError) as exc:
        raise BundleError(f"{path}: does not match the manifest; export the model again") from exc


def _read_safetensors(path: Path) -> Mapping[str, npt.NDArray[Any]]:
    """Read a file of https://github.com/huggingface/safetensors: a length, a JSON header, raw little-endian arrays.

    Only the offline half depends on the package itself; this reads the two dtypes that probes use.
    """
    try:
        content = path.read_bytes()
        size = int.from_bytes(content[:_LENGTH_BYTES], "little")
        header = json.loads(content[_LENGTH_BYTES : _LENGTH_BYTES + size])
        data = memoryview(content)[_LENGTH_BYTES + size :]
        header.pop("__metadata__", None)
        return {name: _array(data, entry) for name, entry in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise BundleError(f"{path}: cannot be read ({exc})") from exc


def _array(data: memoryview, entry: Mapping[str, Any]) -> npt.NDArray[Any]:
    start, end = entry["data_offsets"]
    array: npt.NDArray[Any] = np.frombuffer(data[start:end], _DTYPES[entry["dtype"]])
    if array.size != math.prod(entry["shape"]):
        raise ValueError("an array does not have its shape")
    return array.reshape(entry["shape"])
