"""Give a tiny bundle probes, as an export does."""

import dataclasses
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from service.model.engine.engine import OnnxEngine
from service.model.loading import Bundle, load_bundle
from service.model.manifest import MANIFEST, FileEntry
from service.model.probes import PROBES, probe_pictures
from tests.support.tiny_bundle import write_tiny_bundle


def with_probes(bundle: Bundle, *, turned: bool = False) -> Bundle:
    """The bundle with its own vectors as probes, or with vectors that point elsewhere."""
    engine = OnnxEngine.load(bundle, "cpu", threads=1)
    ids = np.full((3, 64), bundle.manifest.text.pad_id)
    lengths = np.array([2, 3, 4])
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = [*range(3, 2 + length), bundle.manifest.text.end_of_text_id]
    size = bundle.manifest.image.height
    images = engine.encode_images(probe_pictures(size, size))
    arrays = {"ids": ids, "lengths": lengths, "image_vectors": images, "text_vectors": engine.encode_texts(ids)}
    if turned:
        arrays["image_vectors"] = np.ascontiguousarray(images[:, ::-1])
    save_file(arrays, bundle.path / PROBES)
    files = {**bundle.manifest.files, PROBES: FileEntry.of(bundle.path / PROBES)}
    return dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"files": files}))


def write_tiny_bundle_with_probes(path: Path) -> Path:
    """Write a tiny bundle that has probes, on disk as an export writes it, and return `path`."""
    bundle = with_probes(load_bundle(write_tiny_bundle(path)))
    manifest = bundle.manifest.model_copy(update={"revision": bundle.manifest.compute_revision()})
    (path / MANIFEST).write_text(manifest.to_json(), "utf-8")
    return path
