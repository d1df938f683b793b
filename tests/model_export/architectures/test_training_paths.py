"""Tests of the faster ways of a training: gradients of attention, and the preparation of pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model_export.architectures import layers
from model_export.architectures.attention import attend
from model_export.architectures.encoders import ImageEncoder
from model_export.architectures.layers import Attention
from model_export.architectures.towers import TwoTowers
from model_export.training.blueprint import blueprint_of_run
from model_export.training.model import build_model
from tests.support.tiny_run import TOWERS, tiny_model, write_tiny_run

CAUSAL = torch.full((7, 7), float("-inf"), dtype=torch.float64).triu(1)[None, None]
SEEN = CAUSAL[:, :, [2, 4, 6]].transpose(0, 2)  # [3, 1, 1, 7]
TEXT = {"vocab_size": 50, "context_length": 8, "width": 16, "layers": 1, "heads": 2, "end_of_text_id": 49, "pad_id": 0}


def inputs(queries: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Draw queries, keys and values of three sequences of seven."""
    generator = torch.Generator().manual_seed(0)
    lengths = ((3, queries), (3, 7), (3, 7))
    # As the projections give them: heads are not apart in memory.
    drawn = [torch.randn(batch, length, 2, 8, generator=generator, dtype=torch.float64) for batch, length in lengths]
    first, second, third = (each.to(dtype).transpose(1, 2).requires_grad_() for each in drawn)
    return first, second, third


@pytest.mark.parametrize(("queries", "mask"), [(7, None), (7, CAUSAL), (1, SEEN)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
def test_attention_has_the_values_and_gradients_of_torch(
    queries: int, mask: Tensor | None, dtype: torch.dtype, tolerance: float
) -> None:
    """Values are the same bits; gradients are within rounding of those in fp64."""
    given, exact = inputs(queries, dtype), inputs(queries, torch.float64)
    own_mask = None if mask is None else mask.to(dtype)
    attended = attend(*given, own_mask)
    weights = torch.randn(attended.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = functional.scaled_dot_product_attention(*exact, attn_mask=mask)

    with torch.no_grad():
        plain = functional.scaled_dot_product_attention(*given, attn_mask=own_mask)
    assert torch.equal(attended, plain)
    found = torch.autograd.grad(attended, given, weights.to(dtype))
    wanted = torch.autograd.grad(expected, exact, weights)
    for gradient, right in zip(found, wanted, strict=True):
        assert gradient.dtype == dtype
        assert (gradient.double() - right).norm() <= tolerance * right.norm()


def test_a_model_in_training_attends_so_unless_it_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients, and in a model that was not built to be trained, torch's own attention stays."""
    used: list[tuple[int, ...]] = []

    def counted(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        used.append(tuple(queries.shape))
        return attend(queries, keys, values, mask)

    monkeypatch.setattr(layers, "attend", counted)
    blueprint = blueprint_of_run(write_tiny_run(tmp_path / "run", "vit"))
    pixels = torch.zeros(2, 3, blueprint.image.height, blueprint.image.width)

    def calls(model: TwoTowers) -> int:
        used.clear()
        model.encode_image(pixels)
        return len(used)

    trained = build_model(blueprint, "softmax", None)
    blocks = sum(isinstance(module, Attention) for module in trained.visual.modules())
    assert blocks > 0
    assert calls(trained) == blocks
    with torch.no_grad():
        assert calls(trained) == 0
    assert calls(build_model(blueprint, "softmax", None, compiled=True)) == 0
    assert calls(blueprint.family.build(blueprint.config)) == 0


@pytest.mark.parametrize("channels_last", [False, True])
def test_pixels_are_prepared_to_the_bit(channels_last: bool) -> None:
    """The faster way gives what is exported, in the layout that a tower's convolutions want."""
    model = tiny_model({"embed_dim": 12, "image": TOWERS["vit"], "text": TEXT}, 0)
    encoder = ImageEncoder(model, (0.48, 0.45, 0.4), (0.27, 0.26, 0.28))
    encoder.channels_last = channels_last
    pixels = torch.randint(0, 256, (2, 6, 5, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    prepared = encoder.prepare(pixels)

    assert torch.equal(prepared, encoder.normalise(pixels))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert prepared.is_contiguous(memory_format=layout)
