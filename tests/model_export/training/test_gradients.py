"""Tests of gradients in micro-batches, of checkpointed blocks and of the watch over losses."""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_export.architectures.encoders import ImageEncoder
from model_export.architectures.layers import ResidualAttentionBlock
from model_export.architectures.towers import TwoTowers
from model_export.data.loading import Batch
from model_export.data.tally import Tally
from model_export.errors import TrainingError
from model_export.families.clip.config import ClipConfig
from model_export.families.clip.model import ClipModel
from model_export.training.finite import FiniteWatch
from model_export.training.gradients import Gradients
from tests.support.tiny_run import TOWERS, tiny_model

PAIRS = 10
CAPTIONS = 7
TEXT = {"vocab_size": 50, "context_length": 8, "width": 16, "layers": 3, "heads": 2, "end_of_text_id": 49, "pad_id": 0}


class Dropping(nn.Module):
    """A tower that draws random numbers."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        """Encode, and drop."""
        dropped: Tensor = self.dropout(self.tower(x))
        return dropped


def model_of(tower: str, *, drops: bool = False) -> TwoTowers:
    """Make a small model in float64, in training mode."""
    model: Any = tiny_model({"embed_dim": 12, "image": TOWERS[tower], "text": TEXT}, 0)
    model.register_parameter("logit_bias", nn.Parameter(torch.tensor(-3.0)))
    if drops:
        model.visual, model.text = Dropping(model.visual), Dropping(model.text)
    trained: TwoTowers = model.double().train()
    return trained


def batch_of(size: int, seed: int = 0) -> Batch:
    """Draw a batch; some captions and meanings repeat."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 49, (CAPTIONS, 8), generator=generator)
    ids[:, 5] = 49
    return Batch(
        0,
        torch.randint(0, 256, (PAIRS, size, size, 3), dtype=torch.uint8, generator=generator),
        ids,
        torch.arange(PAIRS) % CAPTIONS,
        torch.arange(PAIRS) % 8,
        torch.arange(PAIRS) % CAPTIONS,
        Tally(),
        (),
    )


def computed(model: TwoTowers, batch: Batch, **options: Any) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Return loss, gradients and the next random number, from one seed."""
    model.zero_grad()
    encoder = ImageEncoder(model, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).double()
    torch.manual_seed(3)
    loss = Gradients(model, encoder, **{"loss": "softmax", **options})(batch)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss, gradients, torch.rand(1)


@pytest.mark.parametrize(
    "options",
    [{"label_smoothing": 0.1}, {"loss": "sigmoid"}, {"loss": "sigmoid", "chunk": 3}],
    ids=["softmax", "sigmoid", "sigmoid in chunks"],
)
@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_micro_batches_are_the_whole_batch(size: int, options: dict[str, Any]) -> None:
    """To 1e-9 in float64: loss and every gradient, of the scale too, whether or not the size divides the batch."""
    model, batch = model_of("vit"), batch_of(32)
    loss, gradients, _ = computed(model, batch, **options)

    again, in_parts, _ = computed(model, batch, micro_batch=size, **options)

    torch.testing.assert_close(again, loss, rtol=0, atol=1e-9)
    assert gradients.keys() == in_parts.keys()
    assert {"logit_scale", "visual.conv1.weight", "text.token_embedding.weight"} <= gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(in_parts[name], gradient, rtol=0, atol=1e-9)


def test_a_replay_draws_the_same_random_numbers() -> None:
    """With dropout, vectors and gradients of a micro-batch come from one draw, which is not drawn twice."""
    model, batch = model_of("vit", drops=True), batch_of(32)
    drawn: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda _module, _inputs, output: drawn.append(output.detach()))
        for module in model.modules()
        if isinstance(module, nn.Dropout)
    ]
    assert 2 == len(handles)

    _, _, after = computed(model, batch, micro_batch=5)

    for handle in handles:
        handle.remove()
    firsts, replays = drawn[:4], drawn[4:]
    assert [5, 5, 5, 2] == [len(each) for each in firsts]
    assert all(torch.equal(first, replay) for first, replay in zip(firsts, replays, strict=True))
    assert not torch.equal(firsts[0] == 0, firsts[1] == 0)
    torch.manual_seed(3)
    with torch.no_grad():
        for part in firsts:
            nn.functional.dropout(torch.ones_like(part), 0.3)
    assert torch.equal(torch.rand(1), after)


def test_micro_batches_touch_the_statistics_of_batch_norms_once() -> None:
    """Each pair counts once in the running mean, though it is computed twice; tracking goes on afterwards."""
    model, batch = model_of("residual_conv"), batch_of(32)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        encoder = ImageEncoder(expected, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).double()
        for part in torch.split(batch.pixels, 5):
            expected.encode_image(encoder.normalise(part))

    computed(model, batch, micro_batch=5)

    for (name, wanted), actual in zip(expected.state_dict().items(), model.state_dict().values(), strict=True):
        if "running_" in name or "num_batches" in name:
            torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-12)
    assert all(module.track_running_stats for module in model.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_frozen_tower_gets_no_gradient(tower: Any, micro_batch: int | None) -> None:
    """The other tower's gradients are those of a model without a frozen tower."""
    model, batch = model_of("vit"), batch_of(32)
    _, whole, _ = computed(model, batch)
    (model.visual if tower == "image" else model.text).requires_grad_(requires_grad=False)

    _, gradients, _ = computed(model, batch, frozen=(tower,), micro_batch=micro_batch)

    frozen = "visual." if tower == "image" else "text."
    assert {name for name in whole if not name.startswith(frozen)} == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, whole[name], rtol=0, atol=1e-9)


class Kept:
    """A tensor that a graph keeps; it lives as long as the graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def most_kept(model: nn.Module, compute: Callable[[], object]) -> int:
    """Return the most bytes, weights aside, that graphs keep for their backward passes at one time."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    users: Counter[tuple[int, int]] = Counter()
    most = 0

    def keep(tensor: Tensor) -> Tensor | Kept:
        nonlocal most
        storage = tensor.untyped_storage()
        key = (storage.data_ptr(), storage.nbytes())
        if key[0] in weights:
            return tensor
        users[key] += 1
        most = max(most, sum(size for _, size in +users))
        kept = Kept(tensor)
        weakref.finalize(kept, users.subtract, [key])
        return kept

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor if isinstance(kept, Kept) else kept):
        result = compute()
    del result
    return most


def test_a_micro_batch_bounds_the_memory() -> None:
    """Of ten pairs two at a time, a fifth of the activations are kept, and little more."""
    model, batch = model_of("vit"), batch_of(32)
    whole = most_kept(model, lambda: computed(model, batch))
    assert most_kept(model, lambda: computed(model, batch, micro_batch=2)) < 0.25 * whole


def test_checkpointed_blocks_give_the_same_bits_in_less_memory() -> None:
    """Gradients are equal bit for bit; of the blocks, only the inputs are kept."""
    config = ClipConfig.model_validate(
        {"embed_dim": 12, "image": {**TOWERS["vit"], "patch_size": 4, "layers": 6}, "text": TEXT}
    )
    torch.manual_seed(0)
    model, batch = ClipModel(config).double(), batch_of(32)
    encoder = ImageEncoder(model, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).double()
    pixels = encoder.normalise(batch.pixels)
    found = []
    for recomputes in (False, True):
        for module in model.modules():
            if isinstance(module, ResidualAttentionBlock):
                module.recomputes = recomputes
        _, gradients, _ = computed(model, batch)
        found.append((gradients, most_kept(model, lambda: model.encode_image(pixels))))

    for name, gradient in found[0][0].items():
        assert torch.equal(gradient, found[1][0][name]), name
    assert found[1][1] < 0.4 * found[0][1]


def test_the_watch_names_the_first_loss_that_is_not_finite() -> None:
    """Later losses do not hide it; finite ones say nothing."""
    watch = FiniteWatch(torch.device("cpu"))
    watch.note(4, torch.tensor(1.0))
    watch.check()
    for step, value in ((5, float("inf")), (6, 2.0), (7, float("nan"))):
        watch.note(step, torch.tensor(value))
    with pytest.raises(TrainingError, match=r"the loss became inf at step 6; .*Lower optim\.lr"):
        watch.check()
