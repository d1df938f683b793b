"""The objectives: symmetric contrastive (paper, Figure 3), and pairwise sigmoid (Zhai et al. 2023).

Of several ranks, each compares its own rows with the whole batch: the mean of all ranks' losses is the batch's, as is
the mean of their gradients, and no rank has more than its share of the logits.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from model_export.training.ranks import ALONE, Ranks


def same_meaning(label: Tensor, noun: Tensor, *, ignore: bool = True, ranks: Ranks = ALONE) -> Tensor:
    """Compare the meaning of a rank's pairs with all of the batch: bool ``[rows, batch]``, true for a row itself.

    Without ``ignore`` nothing else is true: every other pair is a negative, as in the paper.

    Otherwise, two images of one class or noun would be pushed away from each other's caption, although it describes
    both. Comparing captions as strings would miss most such pairs: the template or the noun differs.
    """
    if not ignore:
        same = torch.zeros(len(label), ranks.size * len(label), dtype=torch.bool, device=label.device)
        return _own(same, ranks.rank * len(label))
    of_all = ranks.gather(torch.stack([label, noun], dim=1))  # [batch, 2]
    return (label[:, None] == of_all[:, 0]) | (noun[:, None] == of_all[:, 1])


def contrastive_loss(
    images: Tensor,
    texts: Tensor,
    log_scale: Tensor,
    same: Tensor,
    *,
    label_smoothing: float = 0.0,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Return the mean of image-to-text and text-to-image cross-entropy of a rank's rows with the whole batch.

    Args:
        images: float ``[rows, dim]`` of any length; normalised here, in fp32, or fp64 if it is given.
        texts: float ``[rows, dim]``, row i the caption of row i of ``images``.
        log_scale: scalar, the logarithm of the logit scale.
        same: bool ``[rows, batch]``; true entries off the diagonal count neither as positive nor as negative.
        label_smoothing: share of the target spread over all entries that count.
        ranks: that hold the other rows of the batch.

    Returns:
        Scalar, fp32 or fp64.
    """
    by_image, by_text = _similarities(images, texts, _exact(log_scale).exp(), ranks)
    first = ranks.rank * len(images)
    ignored = same & ~_own(same, first)
    return (
        _cross_entropy(by_image, ignored, first, label_smoothing)
        + _cross_entropy(by_text, ignored, first, label_smoothing)
    ) / 2


def _similarities(images: Tensor, texts: Tensor, scale: Tensor | float, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Compare a rank's pictures with all texts of the batch, and its texts with all pictures: ``[rows, batch]``."""
    images, texts = _unit_length(images), _unit_length(texts)
    by_image = scale * images @ ranks.gather(texts).T
    return by_image, by_image.T if ranks.size == 1 else scale * texts @ ranks.gather(images).T


def _cross_entropy(logits: Tensor, ignored: Tensor, first: int, label_smoothing: float) -> Tensor:
    log_p = logits.masked_fill(ignored, float("-inf")).log_softmax(dim=1)
    loss = -log_p.diagonal(first)
    if label_smoothing:
        counted = (~ignored).sum(dim=1)
        uniform = -log_p.masked_fill(ignored, 0.0).sum(dim=1) / counted
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    return loss.mean()


def sigmoid_loss(
    images: Tensor,
    texts: Tensor,
    log_scale: Tensor,
    bias: Tensor,
    same: Tensor,
    *,
    chunk: int | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Return the mean over a rank's pictures of the summed binary cross-entropy with each text of the batch.

    Args:
        images: float ``[rows, dim]`` of any length; normalised here, in fp32, or fp64 if it is given.
        texts: float ``[rows, dim]``, row i the caption of row i of ``images``.
        log_scale: scalar, the logarithm of the logit scale.
        bias: scalar, added to the scaled cosines.
        same: bool ``[rows, batch]``; true entries off the diagonal count neither as positive nor as negative.
        chunk: pictures whose logits are in memory at a time, forwards and backwards; by default all.
        ranks: that hold the other rows of the batch.

    Returns:
        Scalar, fp32 or fp64.
    """
    images, texts = _unit_length(images), ranks.gather(_unit_length(texts))
    scale, bias = _exact(log_scale).exp(), _exact(bias)
    first = ranks.rank * len(images)
    size = chunk or len(images)
    if size >= len(images):
        return _sigmoid_rows(images, texts, scale, bias, same, first) / len(images)
    parts = [
        # Recomputed in the backward pass: kept, the logits of all chunks would be the whole matrix again.
        checkpoint(
            _sigmoid_rows,
            images[start : start + size],
            texts,
            scale,
            bias,
            same[start : start + size],
            first + start,
            use_reentrant=False,
        )
        for start in range(0, len(images), size)
    ]
    return torch.stack(parts).sum() / len(images)


def _sigmoid_rows(  # noqa: PLR0917 - checkpointed, so by position
    images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor, same: Tensor, first: int
) -> Tensor:
    """Sum over the pairs of some pictures, the first of which is number ``first`` of the batch, with all texts."""
    logits = scale * images @ texts.T + bias  # [rows, batch]
    positive = _own(same, first)
    losses = -functional.logsigmoid(torch.where(positive, logits, -logits))
    return losses.masked_fill(same & ~positive, 0.0).sum()


def _own(same: Tensor, first: int) -> Tensor:
    """Mark each row's own caption: bool ``[rows, batch]``; the first row is number ``first`` of the batch."""
    own = torch.zeros_like(same)
    own.diagonal(first).fill_(value=True)
    return own


def _exact(values: Tensor) -> Tensor:
    """Return values in fp32, or as they are if they are fp64."""
    return values if values.dtype == torch.float64 else values.float()


def _unit_length(vectors: Tensor) -> Tensor:
    return functional.normalize(_exact(vectors), dim=1)


def distillation_loss(
    images: Tensor,
    texts: Tensor,
    log_scale: Tensor,
    *,
    taught_images: Tensor,
    taught_texts: Tensor,
    taught_scale: float,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Return the mean of image-to-text and text-to-image cross-entropy with a teacher's similarities as targets.

    As open_clip distils (``DistillClipLoss``). Teacher and student may have joint spaces of different dimensions.

    Args:
        images: float ``[rows, dim]`` of any length.
        texts: float ``[rows, dim]``, row i the caption of row i of ``images``.
        log_scale: scalar, the logarithm of the student's logit scale.
        taught_images: the teacher's vectors, float ``[rows, its dim]``.
        taught_texts: likewise.
        taught_scale: the teacher's logit scale, exponentiated.
        ranks: that hold the other rows of the batch.

    Returns:
        Scalar, fp32 or fp64.
    """
    by_image, by_text = _similarities(images, texts, _exact(log_scale).exp(), ranks)
    taught_by_image, taught_by_text = _similarities(taught_images, taught_texts, taught_scale, ranks)
    return (_soft_cross_entropy(by_image, taught_by_image) + _soft_cross_entropy(by_text, taught_by_text)) / 2


def _soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()
