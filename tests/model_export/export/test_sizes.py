"""Every named size as a graph: its own widths, heads, patches and activation, one layer deep, on a small picture."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnxruntime
import pytest
import torch

from model_export.architectures.encoders import ImageEncoder, TextEncoder
from model_export.checkpoints.model_source import text_section
from model_export.families.clip.config import ClipConfig, ModifiedResNetConfig, VisionTransformerConfig
from model_export.families.family import ModelConfig
from model_export.families.siglip.config import SiglipConfig
from model_export.families.sizes import SIZES
from model_export.families.table import family_of
from model_export.graphs.folding import fold_batch_norm
from model_export.graphs.torch_export import IDS, PIXELS, export_image_encoder, export_text_encoder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CONTEXT: Final = 8
VOCABULARY: Final = 32
END: Final = 31
LENGTHS: Final = (2, 5, CONTEXT)


def shallow(config: ModelConfig) -> ClipConfig | SiglipConfig:
    """Keep one layer of each tower, four patches, a short context and a few tokens; everything else stays."""
    fewer = {"layers": 1, "context_length": CONTEXT, "vocab_size": VOCABULARY}
    if isinstance(config, SiglipConfig):
        small = config.image.model_copy(update={"layers": 1, "image_size": 2 * config.image.patch_size})
        return config.model_copy(update={"image": small, "text": config.text.model_copy(update=fewer)})
    assert isinstance(config, ClipConfig)
    image, text = config.image, config.text
    tower: ModifiedResNetConfig | VisionTransformerConfig
    if isinstance(image, ModifiedResNetConfig):
        tower = image.model_copy(update={"layers": (1, 1, 1, 1), "image_size": 64})
    else:
        assert isinstance(image, VisionTransformerConfig)
        tower = image.model_copy(update={"layers": 1, "image_size": 2 * image.patch_size})
    return config.model_copy(
        update={"image": tower, "text": text.model_copy(update={**fewer, "end_of_text_id": END, "pad_id": 0})}
    )


SHALLOW: Final = {shallow(size.config).model_dump_json(): name for name, size in reversed([*SIZES.items()])}
"""Sizes by configuration, so that sizes which differ only in depth or picture are exported once."""


@pytest.mark.parametrize("name", sorted(SHALLOW.values()))
def test_a_size_exports_to_graphs_that_compute_it(name: str) -> None:
    """Both graphs give torch's vectors, for other batches than the example's and, of a CLIP, for short texts too."""
    config = shallow(SIZES[name].config)
    family = family_of(config)
    torch.manual_seed(0)
    model = family.build(config).eval().requires_grad_(requires_grad=False)
    side, fixed = config.image.image_size, family.padding == "fixed"
    image = fold_batch_norm(ImageEncoder(model, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    text = TextEncoder(model)
    section = text_section(context_length=CONTEXT, pad_id=0, end_of_text_id=END, fixed=fixed)
    rng = np.random.default_rng(0)

    graph = export_image_encoder(image, height=side, width=side).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        pixels = rng.integers(0, 256, (batch, side, side, 3), np.uint8)
        (got,) = session.run(None, {PIXELS: pixels})
        np.testing.assert_allclose(got, image(torch.from_numpy(pixels)).numpy(), rtol=0, atol=1e-5)

    graph = export_text_encoder(text, section).SerializeToString()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    for length in (CONTEXT,) if fixed else LENGTHS:
        ids = rng.integers(1, END, (3, length))
        ids[:, -1] = END
        (got,) = session.run(None, {IDS: ids})
        np.testing.assert_allclose(got, text(torch.from_numpy(ids)).numpy(), rtol=0, atol=1e-5)
