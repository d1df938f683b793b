"""Every named size as a graph: its own widths, heads, patches and activation, one layer deep, on a small picture."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto

from model_export.architectures.encoders import ImageEncoder, TextEncoder
from model_export.architectures.towers import TwoTowers
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


SHALLOW: Final = {name: shallow(size.config) for name, size in SIZES.items()}


def each(tower: Literal["image", "text"]) -> list[str]:
    """Return sizes whose towers differ, the first of each kind: some differ only in depth, picture or other tower."""
    first: dict[tuple[object, ...], str] = {}
    for name, config in SHALLOW.items():
        rest = config.model_dump_json(exclude={"image", "text"})
        first.setdefault((type(config), rest, getattr(config, tower).model_dump_json()), name)
    return sorted(first.values())


def model_of(config: ModelConfig) -> TwoTowers:
    """Build a shallow model with random weights."""
    torch.manual_seed(0)
    return family_of(config).build(config).eval().requires_grad_(requires_grad=False)


def opened(graph: ModelProto) -> onnxruntime.InferenceSession:
    """Open a graph on the CPU."""
    return onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", each("image"))
def test_the_image_tower_of_a_size_exports_to_a_graph_that_computes_it(name: str) -> None:
    """The graph gives torch's vectors, for other batches than the example's."""
    config = SHALLOW[name]
    encoder = fold_batch_norm(ImageEncoder(model_of(config), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))
    side = config.image.image_size
    session = opened(export_image_encoder(encoder, height=side, width=side))
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        pixels = rng.integers(0, 256, (batch, side, side, 3), np.uint8)
        (got,) = session.run(None, {PIXELS: pixels})
        np.testing.assert_allclose(got, encoder(torch.from_numpy(pixels)).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", each("text"))
def test_the_text_tower_of_a_size_exports_to_a_graph_that_computes_it(name: str) -> None:
    """The graph gives torch's vectors, for other batches than the example's and, of a CLIP, for short texts too."""
    config = SHALLOW[name]
    fixed = family_of(config).padding == "fixed"
    encoder = TextEncoder(model_of(config))
    section = text_section(context_length=CONTEXT, pad_id=0, end_of_text_id=END, fixed=fixed)
    session = opened(export_text_encoder(encoder, section))
    rng = np.random.default_rng(0)
    for length in (CONTEXT,) if fixed else LENGTHS:
        ids = rng.integers(1, END, (3, length))
        ids[:, -1] = END
        (got,) = session.run(None, {IDS: ids})
        np.testing.assert_allclose(got, encoder(torch.from_numpy(ids)).numpy(), rtol=0, atol=1e-5)
