"""Labels of many scripts, from text to logits: as transformers and open_clip compute them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, MetaClip2Model, Siglip2Model, Siglip2Tokenizer
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

from model_export.checkpoints.load import load_model
from model_export.checkpoints.model_source import SourceOptions
from model_export.errors import SourceError
from model_export.export.from_weights import export_model
from service.model.engine.engine import OnnxEngine
from service.model.loading import load_bundle
from service.model.manifest import SigmoidScoring
from service.model.tokenizer import Tokenizer
from tests.model_export.conftest import Heard
from tests.support.tiny_multilingual import LABELS, write_metaclip_2, write_naflex

ATOL = 1e-4

pytestmark = pytest.mark.timeout(600)


def served(folder: Path, bundle: Path) -> tuple[Tensor, Tensor]:
    """Export a folder, and return noise as bytes ``[3, height, width, 3]`` with the logits of the labels."""
    export_model(load_model(folder, SourceOptions()), bundle, listener=Heard())
    opened = load_bundle(bundle)
    section, scoring = opened.manifest.image, opened.manifest.scoring
    pixels = np.random.default_rng(0).integers(0, 256, (3, section.height, section.width, 3), np.uint8)
    engine = OnnxEngine.load(opened, "cpu", threads=1)
    texts = engine.encode_texts(Tokenizer.from_bundle(opened).encode(LABELS))
    logits = scoring.logit_scale * engine.encode_images(pixels) @ texts.T
    engine.close()
    bias = scoring.logit_bias if isinstance(scoring, SigmoidScoring) else 0.0
    assert np.ptp(logits, axis=1).min() > 100 * ATOL  # labels differ, so that agreement says something
    return torch.from_numpy(pixels), torch.from_numpy(logits) + bias


def normalised(pixels: Tensor, bundle: Path) -> Tensor:
    """Return bytes as a tower of transformers takes them, ``[3, 3, height, width]``."""
    section = load_bundle(bundle).manifest.image
    return ((pixels / 255 - torch.tensor(section.mean)) / torch.tensor(section.std)).permute(0, 3, 1, 2)


def test_metaclip_2_is_transformers(tmp_path: Path) -> None:
    """CLIP's towers with XLM-V's tokens; padding behind the end of a text changes nothing."""
    folder, bundle = write_metaclip_2(tmp_path / "model"), tmp_path / "bundle"
    pixels, logits = served(folder, bundle)
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = MetaClip2Model.from_pretrained(folder).eval()
    with torch.no_grad():
        said = model(**theirs(list(LABELS), padding=True, return_tensors="pt"), pixel_values=normalised(pixels, bundle))
    torch.testing.assert_close(logits, said.logits_per_image, atol=ATOL, rtol=0)
    text = load_bundle(bundle).manifest.text
    assert ("longest", 1, 2) == (text.padding, text.pad_id, text.end_of_text_id)


def test_another_end_of_text_is_refused(tmp_path: Path) -> None:
    """The tower reads at the id of the configuration, which must be the tokenizer's."""
    folder = write_metaclip_2(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match=r"eos_token_id is 5, which is not the tokenizer's </s>"):
        load_model(folder, SourceOptions())


def test_naflex_with_a_fixed_grid_is_transformers(tmp_path: Path) -> None:
    """Of square pictures the published preprocessing makes the same patches."""
    folder, bundle = write_naflex(tmp_path / "model"), tmp_path / "bundle"
    pixels, logits = served(folder, bundle)
    manifest = load_bundle(bundle).manifest
    assert (32, 32, "squash", "bilinear") == (
        manifest.image.height,
        manifest.image.width,
        manifest.image.resize,
        manifest.image.interpolation,
    )
    recipe: Any = manifest.provenance.recipe
    assert "a fixed grid of patches" in recipe["preparation"]
    theirs: Any = Siglip2Tokenizer.from_pretrained(folder)
    ids = theirs(list(LABELS), padding="max_length", max_length=32, return_tensors="pt")["input_ids"]
    model: Any = Siglip2Model.from_pretrained(folder).eval()
    processor = Siglip2ImageProcessorPil.from_pretrained(folder)
    pictures = processor([each.numpy() for each in pixels], return_tensors="pt")
    with torch.no_grad():
        said = model(input_ids=ids, **pictures)
    torch.testing.assert_close(logits, said.logits_per_image, atol=ATOL, rtol=0)


def test_positions_that_make_no_square_are_refused(tmp_path: Path) -> None:
    """No square picture has as many patches."""
    folder = write_naflex(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_patches"] = 15
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="15 is not a square"):
        load_model(folder, SourceOptions())
