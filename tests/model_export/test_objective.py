from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from model_export.training.objective import contrastive_loss, same_meaning
from model_export.training.optimizer import learning_rate, make_optimizer

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
    """Where every other pair is ignored, the only candidate is the right one."""
    images, texts = features(4)

    loss = contrastive_loss(images, texts, LOG_SCALE, torch.ones(4, 4, dtype=torch.bool), label_smoothing=0.1)

    assert loss.item() == pytest.approx(0.0, abs=1e-6)


def test_the_same_noun_under_another_label_is_the_same_meaning() -> None:
    """Take "bike" under bicycle and under motorcycle: neither caption is a negative of the other's picture."""
    same = same_meaning(torch.tensor([0, 1, 2]), torch.tensor([7, 7, 8]))

    assert [[True, True, False], [True, True, False], [False, False, True]] == same.tolist()


def test_label_smoothing_equals_torchs_where_nothing_is_ignored() -> None:
    """The smoothing is the usual one."""
    images, texts = features(5)
    logits = 10.0 * functional.normalize(images, dim=1) @ functional.normalize(texts, dim=1).T
    target = torch.arange(5)
    expected = (
        functional.cross_entropy(logits, target, label_smoothing=0.2)
        + functional.cross_entropy(logits.T, target, label_smoothing=0.2)
    ) / 2

    actual = contrastive_loss(images, texts, LOG_SCALE, torch.eye(5, dtype=torch.bool), label_smoothing=0.2)

    torch.testing.assert_close(actual, expected)


@given(total=st.integers(2, 500), share=st.floats(0, 0.9))
def test_the_rate_rises_then_falls_and_never_leaves_its_bounds(total: int, share: float) -> None:
    """Warm-up is linear to the peak, then the cosine falls towards zero."""
    warmup = int(total * share)
    rates = [learning_rate(step, total_steps=total, warmup_steps=warmup, peak=2.0) for step in range(total)]

    assert all(0 < rate <= 2.0 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == pytest.approx(2.0)


def test_gains_biases_and_the_logit_scale_are_not_decayed() -> None:
    """Only what has two or more dimensions loses weight when the gradient is zero."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = make_optimizer(model, lr=0.1, weight_decay=0.5, betas=(0.9, 0.98), eps=1e-6)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    optimizer.step()

    torch.testing.assert_close(model[0].weight, before["0.weight"] * (1 - 0.1 * 0.5))
    for name in ("0.bias", "1.weight", "1.bias"):
        torch.testing.assert_close(dict(model.named_parameters())[name], before[name], atol=0, rtol=0)
