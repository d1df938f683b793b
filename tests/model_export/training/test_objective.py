from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from model_export.training.objective import contrastive_loss, same_meaning, sigmoid_loss
from model_export.training.optimizer import Optimizer, learning_rate

LOG_SCALE = torch.tensor(math.log(10.0))


def features(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Make seeded image and text features, ``[n, 8]`` each."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 8, generator=generator), torch.randn(n, 8, generator=generator)


def test_without_repeats_it_is_the_papers_figure_3() -> None:
    """All pairs different: the loss is the mean cross-entropy of the diagonal over rows and over columns."""
    images, texts = features(6)
    logits = 10.0 * functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).T
    target = torch.arange(6)
    expected = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2

    actual = contrastive_loss(images, texts, LOG_SCALE, torch.eye(6, dtype=torch.bool))

    torch.testing.assert_close(actual, expected)


def test_with_same_meaning_off_repeats_are_negatives() -> None:
    """The loss equals cross-entropy both ways, whatever the pairs mean."""
    images, texts = features(6)
    logits = 10.0 * functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).T
    target = torch.arange(6)
    same = same_meaning(torch.tensor([4, 4, 5, 6, 5, 4]), torch.tensor([0, 1, 2, 3, 2, 0]), ignore=False)

    actual = contrastive_loss(images, texts, LOG_SCALE, same)

    expected = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(actual, expected, atol=0, rtol=1e-6)


def test_pairs_that_mean_the_same_are_not_each_others_negatives() -> None:
    """Each picture chooses among its own caption and those of other meanings only, and each caption likewise."""
    images, texts = features(6)
    same = same_meaning(torch.tensor([4, 4, 5, 6, 5, 4]), torch.tensor([0, 1, 2, 3, 2, 0]))
    similarity = 10.0 * functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).T
    losses = []
    for i in range(6):
        candidates = [j for j in range(6) if j == i or not same[i, j]]
        losses.append(similarity[i, candidates].logsumexp(dim=0) - similarity[i, i])
        losses.append(similarity[candidates, i].logsumexp(dim=0) - similarity[i, i])

    actual = contrastive_loss(images, texts, LOG_SCALE, same)

    torch.testing.assert_close(actual, torch.stack(losses).mean())


def test_a_batch_of_one_meaning_has_no_loss_and_no_nan() -> None:
    """If every other pair is ignored, the only candidate is the right one."""
    images, texts = features(4)

    loss = contrastive_loss(images, texts, LOG_SCALE, torch.ones(4, 4, dtype=torch.bool), label_smoothing=0.1)

    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_the_same_noun_under_another_label_is_the_same_meaning() -> None:
    """Take "bike" under bicycle and under motorcycle: neither caption is a negative of the other's picture."""
    same = same_meaning(torch.tensor([0, 1, 2]), torch.tensor([7, 7, 8]))

    assert [[True, True, False], [True, True, False], [False, False, True]] == same.tolist()


def test_label_smoothing_equals_torchs_where_nothing_is_ignored() -> None:
    """Smoothing agrees with torch's own."""
    images, texts = features(5)
    logits = 10.0 * functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).T
    target = torch.arange(5)
    expected = (
        functional.cross_entropy(logits, target, label_smoothing=0.2)
        + functional.cross_entropy(logits.T, target, label_smoothing=0.2)
    ) / 2

    actual = contrastive_loss(images, texts, LOG_SCALE, torch.eye(5, dtype=torch.bool), label_smoothing=0.2)

    torch.testing.assert_close(actual, expected)


def papers_sigmoid(
    images: torch.Tensor, texts: torch.Tensor, log_scale: torch.Tensor, bias: torch.Tensor, same: torch.Tensor
) -> torch.Tensor:
    """Return SigLIP's loss as its paper writes it (Algorithm 1), without the pairs that are ignored."""
    cosines = functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).T
    diagonal = torch.eye(len(images))
    losses = -functional.logsigmoid((2 * diagonal - 1) * (log_scale.exp() * cosines + bias))
    return (losses * (~same | diagonal.bool())).sum() / len(images)


@pytest.mark.parametrize("chunk", [None, 1, 3, 7, 64])
def test_the_sigmoid_loss_in_chunks_is_the_papers(chunk: int | None) -> None:
    """Loss and all gradients are those of SigLIP's paper, whatever the chunk; pairs of one meaning are left out."""
    same = same_meaning(torch.tensor([4, 4, 5, 6, 5, 4, 8]), torch.tensor([0, 1, 2, 3, 2, 0, 9]))
    found = []
    for loss in (papers_sigmoid, partial(sigmoid_loss, chunk=chunk)):
        images, texts, scale, bias = leaves = [
            each.clone().requires_grad_() for each in (*features(7), LOG_SCALE, torch.tensor(-4.0))
        ]
        value = loss(images, texts, scale, bias, same)
        found.append((value.detach(), *torch.autograd.grad(value, leaves)))

    for wanted, actual in zip(*found, strict=True):
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e-6)


@given(total=st.integers(2, 500), share=st.floats(0, 0.9))
def test_the_rate_rises_then_falls_and_never_leaves_its_bounds(total: int, share: float) -> None:
    """Warm-up is linear to the full rate, then the cosine falls towards zero."""
    warmup = int(total * share)
    rates = [learning_rate(step, total_steps=total, warmup_steps=warmup) for step in range(total)]

    assert all(0 < rate <= 1.0 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == pytest.approx(1.0)


def test_gains_biases_and_the_logit_scale_are_not_decayed() -> None:
    """With a zero gradient, only parameters of two or more dimensions decay."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = Optimizer(model, lr=0.1, weight_decay=0.5, betas=(0.9, 0.98), eps=1e-6)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    optimizer.step(1.0)

    torch.testing.assert_close(model[0].weight, before["0.weight"] * (1 - 0.1 * 0.5))
    for name in ("0.bias", "1.weight", "1.bias"):
        torch.testing.assert_close(dict(model.named_parameters())[name], before[name], atol=0, rtol=0)


class Blocks(torch.nn.Module):
    """A small tower: a stem, numbered blocks, a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 1)
        self.blocks = torch.nn.Sequential(torch.nn.Conv2d(4, 6, 3), torch.nn.Linear(6, 5))
        self.proj = torch.nn.Linear(5, 2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_makes_the_updates_of_hidden_matrices_orthogonal_and_of_no_others(layout: torch.memory_format) -> None:
    """A kernel is a matrix [out, rest]: its change has singular values near the rate, in any memory layout."""
    torch.manual_seed(0)
    model = Blocks().to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = Optimizer(model, lr=0.1, weight_decay=0.0, betas=(0.9, 0.98), eps=1e-6, muon_lr=0.02)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)

    optimizer.step(0.5)

    changes = {name: (before[name] - value.detach()) for name, value in model.named_parameters()}
    for name in ("blocks.0.weight", "blocks.1.weight"):
        spectrum = torch.linalg.svdvals(changes[name].flatten(1)) / (0.5 * 0.02)
        assert 0.5 < spectrum.min()
        assert spectrum.max() < 1.4
    for name in ("stem.weight", "blocks.0.bias", "blocks.1.bias", "proj.weight", "proj.bias"):
        # AdamW's first step is the rate itself, in the gradient's direction.
        torch.testing.assert_close(changes[name].abs(), torch.full_like(changes[name], 0.5 * 0.1), atol=1e-4, rtol=1e-3)


def test_an_optimiser_goes_on_from_its_state() -> None:
    """Two steps in one go equal one step, the state handed to a new optimiser, and another step."""
    weights = []
    for handed_over in (False, True):
        torch.manual_seed(0)
        model = Blocks()
        optimizer = muon_for(model)
        for step in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 0.1).cumsum(0) * (step + 1)
            if handed_over and step == 1:
                state = optimizer.state()
                optimizer = muon_for(model)
                again = optimizer.allocate({name: tensor.shape for name, tensor in state.items()})
                assert state.keys() == again.keys()
                for name, tensor in state.items():
                    assert tensor.stride() == again[name].stride(), name
                    again[name].copy_(tensor)
            optimizer.step(1.0)
        weights.append([parameter.detach() for parameter in model.parameters()])

    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def muon_for(model: torch.nn.Module) -> Optimizer:
    """Make an optimiser of both kinds."""
    return Optimizer(model, lr=0.1, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-6, muon_lr=0.02)


def test_what_is_frozen_stays() -> None:
    """Neither optimiser gets a parameter that needs no gradient."""
    model = Blocks()
    model.stem.weight.requires_grad = False
    before = model.stem.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)

    muon_for(model).step(1.0)

    torch.testing.assert_close(model.stem.weight, before, atol=0, rtol=0)
