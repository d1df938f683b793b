import dataclasses
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from model_export.bundles.probes import load_probes
from service.errors import BundleError
from service.model.loading import Bundle, load_bundle
from service.model.manifest import DEMO_BUNDLE, FileEntry
from service.model.probes import IMAGES, PROBES, quick_probes
from tests.support.tiny_bundle import write_tiny_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A tiny bundle, which has no probes."""
    return load_bundle(write_tiny_bundle(tmp_path / "tiny"))


def _listing(bundle: Bundle) -> Bundle:
    files = {**bundle.manifest.files, PROBES: FileEntry.of(bundle.path / PROBES)}
    return dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update={"files": files}))


def test_they_are_those_that_exports_write() -> None:
    """Read without the package that wrote them; the texts are trimmed to the longest of the few."""
    demo = load_bundle(DEMO_BUNDLE)
    everything, few = load_probes(demo), quick_probes(demo)
    assert few is not None
    np.testing.assert_array_equal(everything.image_vectors[[0, IMAGES - 1]], few.image_vectors)
    np.testing.assert_array_equal(everything.inputs.pixels[[0, IMAGES - 1]], few.pixels)
    np.testing.assert_array_equal(everything.text_vectors[:2], few.text_vectors)
    length = everything.inputs.lengths[:2].max()
    np.testing.assert_array_equal(everything.inputs.ids[:2, :length], few.ids)
    dtypes = [array.dtype for array in (few.ids, few.text_vectors, few.pixels)]
    assert [np.dtype(np.int64), np.dtype(np.float32), np.dtype(np.uint8)] == dtypes


def test_a_bundle_may_have_none(bundle: Bundle) -> None:
    """One that was written by hand."""
    assert quick_probes(bundle) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        (2).to_bytes(8, "little") + b"[]",
        (38).to_bytes(8, "little") + b'{"ids":{"dtype":"F8","data_offsets":1}}',
    ],
)
def test_a_broken_file_is_named(bundle: Bundle, content: bytes) -> None:
    """Whatever is broken in it."""
    (bundle.path / PROBES).write_bytes(content)
    with pytest.raises(BundleError, match=PROBES):
        quick_probes(_listing(bundle))


def test_a_file_of_something_else_is_named(bundle: Bundle) -> None:
    """Sound, but without what the probes are made of, or of another model's size."""
    vectors = np.ones((IMAGES, 3), np.float32)
    save_file({"image_vectors": vectors}, bundle.path / PROBES)
    with pytest.raises(BundleError, match="does not match the manifest"):
        quick_probes(_listing(bundle))
    ids = np.ones((2, 64), np.int64)
    parts: dict[str, np.ndarray] = {
        "ids": ids,
        "lengths": ids[:, 0].copy(),
        "image_vectors": vectors,
        "text_vectors": vectors,
    }
    save_file(parts, bundle.path / PROBES)
    with pytest.raises(BundleError, match="does not match the manifest"):
        quick_probes(_listing(bundle))
