"""The same weights in every layout in which weights are published."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_export.checkpoints.load import load_model
from model_export.checkpoints.model_source import ModelSource
from model_export.export.from_weights import export_model
from service.model.engine.engine import OnnxEngine
from service.model.engine.providers import resolve
from service.model.loading import load_bundle
from tests.model_export.conftest import Heard
from tests.support.layouts import write_layouts

# An export takes some seconds, on a machine that is busy training many more.
pytestmark = pytest.mark.timeout(600)


CLEANED = ("OpenAI", "open_clip")
"""Layouts whose own program cleans a text before it is tokenised; transformers and training runs do not (ADR 23)."""


def cleaned(source: ModelSource) -> ModelSource:
    """Return `source` as a layout whose program cleans texts would have it."""
    return replace(source, text=source.text.model_copy(update={"cleaning": "clip"}))


def assert_same(first: ModelSource, second: ModelSource) -> None:
    """Compare weight by weight, and all else that a bundle's revision depends on."""
    for field in ("name", "aliases", "architecture", "dim", "image", "text", "scoring", "templates", "tokenizer"):
        assert getattr(first, field) == getattr(second, field), field
    theirs = second.model.state_dict()
    assert first.model.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in first.model.state_dict().items())


@pytest.mark.parametrize("tower", ["vit", "modified_resnet"])
def test_every_layout_is_the_same_model(tower: str, tmp_path: Path) -> None:
    """What decides a bundle's revision is equal to the bit, whichever files the weights come from."""
    written = write_layouts(tmp_path, tower)
    sources = {name: load_model(path, options) for name, (path, options) in written.sources.items()}

    assert (9 if tower == "vit" else 6) == len(sources)
    for name, source in sources.items():
        assert ("clip" if name.startswith(CLEANED) else "none") == source.text.cleaning
        assert_same(sources["OpenAI archive"], cleaned(source))


@pytest.mark.slow
def test_every_layout_is_the_same_bundle_and_the_reference(tmp_path: Path) -> None:
    """The layouts that differ most give one revision if texts are cleaned alike; its vectors are a reference CLIP's."""
    written = write_layouts(tmp_path, "vit")
    revisions = {}
    for name in ("OpenAI archive", "Hugging Face, in shards"):
        path, options = written.sources[name]
        source = cleaned(load_model(path, options))
        revisions[name] = export_model(source, tmp_path / name, listener=Heard()).revision

    assert 1 == len({*revisions.values()})
    bundle = load_bundle(tmp_path / "OpenAI archive")
    section = bundle.manifest.image
    pixels = np.random.default_rng(0).integers(0, 256, (3, section.height, section.width, 3), np.uint8)
    ids = np.array([[598, 5, 6, 599, 0, 0], [598, 7, 8, 9, 10, 599], [598, 599, 0, 0, 0, 0]])
    engine = OnnxEngine.load(bundle, resolve("cpu"))
    got = engine.encode_images(pixels), engine.encode_texts(ids)
    engine.close()
    normalised = (torch.from_numpy(pixels) / 255 - torch.tensor(section.mean)) / torch.tensor(section.std)
    with torch.no_grad():
        wanted = written.model(normalised.permute(0, 3, 1, 2), torch.from_numpy(ids))
    for mine, theirs in zip(got, wanted, strict=True):
        unit = torch.nn.functional.normalize(theirs, dim=1).numpy()
        np.testing.assert_allclose(mine, unit, rtol=0, atol=1e-5)
