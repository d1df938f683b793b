"""Probes: inputs that follow from a bundle, and the vectors that torch computed for them at export.

They are a file of the bundle, so it can be verified alone: on another machine, provider or runtime, without torch and
without the original weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from model_export.errors import ExportError
from service.errors import PromptTooLong
from service.model.arrays import Ids, Pixels, Vectors
from service.model.loading import Bundle
from service.model.manifest import DEFAULT_TEMPLATES
from service.model.probes import IMAGES, PROBES, probe_pictures
from service.model.prompts import fill
from service.model.tokenizer import Tokenizer

LABELS: Final = (
    "cat",
    "motorcycle",
    "rocket",
    "cup of tea",
    "very old oak tree in the rain",
    "Zürich, 1848",
    "犬",
)
MIN_LENGTH: Final = 2


@dataclass(frozen=True)
class Inputs:
    """Inputs of both encoders.

    Attributes:
        pixels: uint8 ``[images, height, width, 3]``.
        ids: int64 ``[texts, context]``, padded.
        lengths: int64 ``[texts]``, the tokens of each text; includes every length from 2 to the context.
    """

    pixels: Pixels
    ids: Ids
    lengths: npt.NDArray[np.int64]


@dataclass(frozen=True)
class ReferenceProbes:
    """Inputs, and the reference's unit vectors: float32 ``[images, dim]`` and ``[texts, dim]``."""

    inputs: Inputs
    image_vectors: Vectors
    text_vectors: Vectors


def probe_inputs(bundle: Bundle) -> Inputs:
    """Make the inputs for a bundle: images from fine noise to large areas, and real prompts of every length."""
    section = bundle.manifest.image
    rows = list(_texts(bundle))
    ids = np.full((len(rows), bundle.manifest.text.max_length), bundle.manifest.text.pad_id, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return Inputs(probe_pictures(section.height, section.width), ids, lengths)


def fitting_labels(bundle: Bundle, tokenizer: Tokenizer) -> tuple[str, ...]:
    """Return the `LABELS` whose prompts under the default templates fit a bundle's context.

    Raises:
        ExportError: none fits.
    """
    fitting = []
    for label in LABELS:
        try:
            tokenizer.tokenize([fill(template, label) for template in bundle.templates[DEFAULT_TEMPLATES]])
        except PromptTooLong:
            continue
        fitting.append(label)
    if not fitting:
        context = bundle.manifest.text.max_length
        raise ExportError(f"the context of {context} tokens is too short for the templates; shorten them")
    return tuple(fitting)


def save_probes(probes: ReferenceProbes, path: Path) -> None:
    """Write everything except the pixels, which follow from their size."""
    arrays = {
        "ids": probes.inputs.ids,
        "image_vectors": probes.image_vectors,
        "lengths": probes.inputs.lengths,
        "text_vectors": probes.text_vectors,
    }
    # save_file would leave a file that only its owner may read.
    path.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def load_probes(bundle: Bundle) -> ReferenceProbes:
    """Read a bundle's probes.

    Raises:
        ExportError: the bundle has none, or they do not fit its manifest.
    """
    path = bundle.path / PROBES
    if PROBES not in bundle.manifest.files:
        raise ExportError(f"{path}: is not part of this bundle; name the source of its weights with --run")
    try:
        arrays = load_file(path)
        inputs = Inputs(
            probe_pictures(bundle.manifest.image.height, bundle.manifest.image.width), arrays["ids"], arrays["lengths"]
        )
        probes = ReferenceProbes(inputs, arrays["image_vectors"], arrays["text_vectors"])
    except (SafetensorError, OSError, KeyError) as exc:
        raise ExportError(f"{path}: cannot be read ({exc})") from exc
    texts, dim = len(inputs.lengths), bundle.manifest.dim
    if (
        probes.image_vectors.shape != (IMAGES, dim)
        or probes.text_vectors.shape != (texts, dim)
        or inputs.ids.shape != (texts, bundle.manifest.text.max_length)
        or not texts
    ):
        raise ExportError(f"{path}: does not have the shapes of the manifest; export the model again")
    return probes


def _texts(bundle: Bundle) -> Iterator[list[int]]:
    """Yield real prompts as token ids, then one text of each length up to the context."""
    tokenizer = Tokenizer.from_bundle(bundle)
    end, context = bundle.manifest.text.end_of_text_id, bundle.manifest.text.max_length
    prompts = []
    for label in fitting_labels(bundle, tokenizer):
        ids = tokenizer.encode([fill(bundle.templates[DEFAULT_TEMPLATES][0], label)])[0].tolist()
        prompts.append(ids[: ids.index(end) + 1])
    yield from prompts
    words = [token for prompt in prompts for token in prompt[1:-1]]
    for length in range(MIN_LENGTH, context + 1):
        yield [prompts[0][0], *islice(cycle(words), length - 2), end]
