from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model_export.architectures.encoders import ImageEncoder, TextEncoder
from model_export.architectures.towers import TwoTowers
from model_export.checkpoints.model_source import text_section
from model_export.data.loading import Batch
from model_export.data.tally import Tally
from model_export.errors import RecipeError
from model_export.training.gradients import Gradients, check_ranks
from model_export.training.joining import joined
from model_export.training.objective import contrastive_loss, same_meaning
from model_export.training.ranks import ALONE, Ranks
from model_export.training.teacher import Teacher
from service.model.manifest import ImageSection
from tests.support.ranks import on_ranks, outcomes_on_ranks
from tests.support.tiny_run import tiny_model

BATCH = 24
CAPTIONS = 17
SIZE = 8

TOWERS: dict[str, dict[str, Any]] = {
    "vit": {"kind": "vit", "image_size": SIZE, "patch_size": 4, "width": 16, "layers": 1, "heads": 2},
    "residual_conv": {"kind": "residual_conv", "image_size": SIZE, "stem_width": 8, "widths": [8, 8]},
}
TEXT = {"vocab_size": 20, "context_length": 6, "width": 16, "layers": 1, "heads": 2, "end_of_text_id": 19, "pad_id": 0}


def tiny(tower: str = "vit") -> TwoTowers:
    """Build a model of float64, the same one each time."""
    model = tiny_model({"embed_dim": 12, "image": TOWERS[tower], "text": TEXT}, 0)
    model.register_parameter("logit_bias", torch.nn.Parameter(torch.tensor(-3.0)))
    return model.double().train()


def part_of_batch(start: int, stop: int) -> Batch:
    """Make some rows of a batch; captions and meanings repeat, on other ranks too."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (BATCH, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    ids = torch.randint(1, 19, (CAPTIONS, 6), generator=generator)
    ids[:, 5] = 19
    caption, label, noun = (torch.randint(0, most, (BATCH,), generator=generator) for most in (CAPTIONS, 9, 15))
    own, index = torch.unique(caption[start:stop], return_inverse=True)
    return Batch(0, pixels[start:stop], ids[own], index, label[start:stop], noun[start:stop], Tally(), ())


CASES: dict[str, dict[str, Any]] = {
    "plain": {"ignore_same_meaning": False},
    "same meaning": {},
    "smoothing": {"label_smoothing": 0.1},
    "frozen images": {"label_smoothing": 0.1, "frozen": ("image",)},
    "micro-batches": {"label_smoothing": 0.1, "micro_batch": 2},
    "distillation": {"distillation": 0.7},
    "sigmoid": {"loss": "sigmoid"},
    "sigmoid in chunks": {"loss": "sigmoid", "chunk": 2},
}


def tiny_teacher() -> Teacher:
    """Make a teacher of another model."""
    model = tiny().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    encoder = ImageEncoder(model, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).double()
    sizes = {"height": SIZE, "width": SIZE, "resize": "squash", "interpolation": "bicubic", "crop": "none"}
    image = ImageSection.model_validate({**sizes, "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)})
    text = text_section(context_length=6, pad_id=0, end_of_text_id=19)
    return Teacher("tiny", "", image, text, b"", 20.0, torch.no_grad()(encoder), torch.no_grad()(TextEncoder(model)))


def loss_and_gradients(ranks: Ranks, **options: Any) -> dict[str, Tensor]:
    """Return the loss of the batch, and the gradient of each parameter, as the trainer computes them."""
    model = tiny()
    if "frozen" in options:
        model.visual.requires_grad_(requires_grad=False)
    encoder = ImageEncoder(model, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)).double()
    teacher = tiny_teacher() if "distillation" in options else None
    gradients = Gradients(model, encoder, **{"loss": "softmax", **options}, teacher=teacher, ranks=ranks)
    loss = gradients(part_of_batch(*ranks.part(BATCH)))
    return {"loss": loss, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


def differences() -> dict[str, float]:
    """Return the largest difference of a loss or gradient from that of one process, for each case."""
    found = {}
    with joined("cpu") as ranks:
        for name, case in CASES.items():
            together, alone = loss_and_gradients(ranks, **case), loss_and_gradients(ALONE, **case)
            assert together.keys() == alone.keys()
            assert {"logit_scale", "text.token_embedding.weight"} <= alone.keys()
            found[name] = max(float((together[key] - alone[key]).abs().max()) for key in alone)
    return found


@pytest.mark.parametrize("size", [2, 3, 4])
def test_gradients_are_those_of_one_process(size: int) -> None:
    """To 1e-9 in float64: the logit scale, the mask, smoothing, frozen towers, micro-batches, the sigmoid loss."""
    for rank, found in enumerate(on_ranks(size, differences)):
        assert CASES.keys() == found.keys()
        assert all(difference <= 1e-9 for difference in found.values()), (rank, found)


def largest_saved(rows: int) -> int:
    """Return the elements of the largest tensor that the loss keeps for the backward pass."""
    sizes = [0]

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with joined("cpu") as ranks:
        start, stop = ranks.part(rows)
        images, texts = (torch.randn(stop - start, 4, requires_grad=True) for _ in range(2))
        label = torch.arange(start, stop)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            contrastive_loss(images, texts, torch.tensor(1.0), same_meaning(label, label, ranks=ranks), ranks=ranks)
    return max(sizes)


def test_a_rank_keeps_its_share_of_the_logits() -> None:
    """Of a batch of 48 on 4 ranks, each keeps 12 rows."""
    assert [12 * 48] * 4 == on_ranks(4, largest_saved, 48)


def same_bits() -> bytes:
    """Average gradients of two types, in more than one bucket, and return one that was not contiguous."""
    with joined("cpu") as ranks:
        parameters = [torch.nn.Parameter(torch.zeros(3, 4, 2, 2, dtype=dtype)) for dtype in (torch.float32,) * 3]
        parameters.append(torch.nn.Parameter(torch.zeros(5, dtype=torch.float64)))
        unused = torch.nn.Parameter(torch.zeros(2))
        for i, parameter in enumerate(parameters):
            generator = torch.Generator().manual_seed(10 * ranks.rank + i)
            gradient = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.grad = gradient.to(memory_format=torch.channels_last) if gradient.ndim == 4 else gradient
        own = [None if parameter.grad is None else parameter.grad.clone() for parameter in parameters]
        ranks.average_gradients([*parameters, unused])
        assert unused.grad is None
        for parameter, before in zip(parameters, own, strict=True):
            assert before is not None
            torch.testing.assert_close(parameter.grad, ranks.gather(before[None]).mean(0))
        return b"".join(p.grad.numpy().tobytes() for p in parameters if p.grad is not None)


def test_averaged_gradients_are_the_same_bits_on_all_ranks() -> None:
    """Whatever their types and their layout in memory; a parameter without a gradient stays without."""
    first, *others = on_ranks(3, same_bits)
    assert others == [first, first]


def spread_weights() -> list[float]:
    """Give all ranks the leader's weights, and return them."""
    with joined("cpu") as ranks:
        module = torch.nn.Linear(2, 2)
        torch.nn.init.constant_(module.weight, ranks.rank + 1)
        ranks.spread(module)
        return module.weight.flatten().tolist()


def test_all_ranks_get_the_leaders_weights() -> None:
    """Parameters are equal from the first step on."""
    assert [[1.0] * 4] * 2 == on_ranks(2, spread_weights)


def check_facts(differs: bool) -> None:
    """Check facts, of which one differs on rank 1."""
    with joined("cpu") as ranks:
        ranks.check_same({"recipe": "a", "data": f"b{ranks.rank if differs else 0}"})


def test_ranks_with_other_data_do_not_start() -> None:
    """The message of one rank names the fact, the rank and both values; the other has nothing to say."""
    on_ranks(2, check_facts, False)
    failures = [text for fine, text in outcomes_on_ranks(2, check_facts, True) if not fine]
    assert 2 == len(failures)
    said = [text for text in failures if "OtherRankError" not in text]
    assert 1 == len(said)
    assert "TrainingError: rank 1 has another data than rank 0: b1, not b0" in said[0]


def fail_on(failing: list[int]) -> None:
    """Raise on some ranks; the others wait for them."""
    with joined("cpu") as ranks:
        if ranks.rank in failing:
            raise RecipeError(f"rank {ranks.rank} cannot go on")
        ranks.wait()


@pytest.mark.parametrize("failing", [[1], [0], [0, 1, 2]])
def test_one_rank_gives_the_reason(failing: list[int]) -> None:
    """However many fail, and however the others notice."""
    outcomes = outcomes_on_ranks(3, fail_on, failing)
    assert not any(fine for fine, _ in outcomes)
    said = [text for _, text in outcomes if "OtherRankError" not in text]
    assert 1 == len(said)
    assert any(f"RecipeError: rank {rank} cannot go on" in said[0] for rank in failing)


def vanish() -> None:
    """End rank 1 without a word."""
    import os

    with joined("cpu") as ranks:
        if ranks.rank == 1:
            os._exit(9)
        ranks.wait()


def test_a_lost_rank_is_reported_once_where_nothing_ends_the_others() -> None:
    """On another machine than the lost rank's, no launcher has seen it end."""
    first, second, third = (text for _, text in outcomes_on_ranks(3, vanish))
    assert "the process ended without an answer" == second
    said = [text for text in (first, third) if "LostRankError: lost the connection to another rank" in text]
    assert 1 == len(said)


def test_a_batch_is_divided_in_the_order_of_ranks() -> None:
    """Rank r of N takes the rows from r * batch / N on."""
    assert [(0, 8), (8, 16), (16, 24)] == [Ranks(rank, 3).part(24) for rank in range(3)]


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    """With both numbers, and the nearest that can be."""
    with pytest.raises(RecipeError, match="batch_size 10 cannot be divided among 4 processes; 8 and 12 can"):
        Ranks(0, 4).part(10)


def test_a_batch_norm_is_trained_by_one_process_only() -> None:
    """Several would each have their own statistics; a frozen one only reads them."""
    model = tiny("residual_conv")
    check_ranks(model, ALONE)
    check_ranks(tiny("vit"), Ranks(0, 2))
    with pytest.raises(RecipeError, match="the image tower has batch norms: each of 2 processes"):
        check_ranks(model, Ranks(0, 2))
    model.visual.eval()
    check_ranks(model, Ranks(0, 2))
