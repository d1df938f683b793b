"""The objectives: symmetric contrastive (paper, Figure 3), and pairwise sigmoid (Zhai et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


def same_meaning(label: Tensor, noun: Tensor, *, ignore: bool = True) -> Tensor:
    """Compare the meaning of all pairs of a batch: bool ``[batch, batch]``, true on the diagonal.

    Without ``ignore`` nothing else is true: every other pair is a negative, as in the paper.

    Otherwise, two images of one class or noun would be pushed away from each other's caption, although it describes
    both. Comparing captions as strings would miss most such pairs: the template or the noun differs.
    """
    if not ignore:
        return torch.eye(len(label), dtype=torch.bool, device=label.device)
    return (label[:, None] == label[None, :]) | (noun[:, None] == noun[None, :])


def contrastive_loss(
    images: Tensor,
    texts: Tensor,
    log_scale: Tensor,
    same: Tensor,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the mean of image-to-text and text-to-image cross-entropy over the batch's similarities.

    Args:
        images: float ``[batch, dim]`` of any length; normalised here, in fp32, or fp64 if it is given.
        texts: float ``[batch, dim]``, row i the caption of row i of ``images``.
        log_scale: scalar, the logarithm of the logit scale.
        same: bool ``[batch, batch]``; true entries off the diagonal count neither as positive nor as negative.
        label_smoothing: share of the target spread over all entries that count.

    Returns:
        Scalar, fp32 or fp64.
    """
    images, texts = _unit_length(images), _unit_length(texts)
    logits = _exact(log_scale).exp() * images @ texts.T  # [batch of images, batch of texts]
    ignored = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    return (_cross_entropy(logits, ignored, label_smoothing) + _cross_entropy(logits.T, ignored.T, label_smoothing)) / 2


def _cross_entropy(logits: Tensor, ignored: Tensor, label_smoothing: float) -> Tensor:
    log_p = logits.masked_fill(ignored, float("-inf")).log_softmax(dim=1)
    loss = -log_p.diagonal()
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
) -> Tensor:
    """Return the mean over pictures of the summed binary cross-entropy with each text of the batch.

    Args:
        images: float ``[batch, dim]`` of any length; normalised here, in fp32, or fp64 if it is given.
        texts: float ``[batch, dim]``, row i the caption of row i of ``images``.
        log_scale: scalar, the logarithm of the logit scale.
        bias: scalar, added to the scaled cosines.
        same: bool ``[batch, batch]``; true entries off the diagonal count neither as positive nor as negative.
        chunk: pictures whose logits are in memory at a time, forwards and backwards; by default all.

    Returns:
        Scalar, fp32 or fp64.
    """
    images, texts = _unit_length(images), _unit_length(texts)
    scale, bias = _exact(log_scale).exp(), _exact(bias)
    size = chunk or len(images)
    if size >= len(images):
        return _sigmoid_rows(images, texts, scale, bias, same, 0) / len(images)
    parts = [
        # Recomputed in the backward pass: kept, the logits of all chunks would be the whole matrix again.
        checkpoint(
            _sigmoid_rows,
            images[start : start + size],
            texts,
            scale,
            bias,
            same[start : start + size],
            start,
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
    positive = torch.zeros_like(same)
    positive.diagonal(first).fill_(value=True)
    losses = -functional.logsigmoid(torch.where(positive, logits, -logits))
    return losses.masked_fill(same & ~positive, 0.0).sum()


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
) -> Tensor:
    """Return the mean of image-to-text and text-to-image cross-entropy with a teacher's similarities as targets.

    As open_clip distils (``DistillClipLoss``). Teacher and student may have joint spaces of different dimensions.

    Args:
        images: float ``[batch, dim]`` of any length.
        texts: float ``[batch, dim]``, row i the caption of row i of ``images``.
        log_scale: scalar, the logarithm of the student's logit scale.
        taught_images: the teacher's vectors, float ``[batch, its dim]``.
        taught_texts: likewise.
        taught_scale: the teacher's logit scale, exponentiated.

    Returns:
        Scalar, fp32 or fp64.
    """
    logits = _exact(log_scale).exp() * _unit_length(images) @ _unit_length(texts).T
    targets = taught_scale * _unit_length(taught_images) @ _unit_length(taught_texts).T
    return (_soft_cross_entropy(logits, targets) + _soft_cross_entropy(logits.T, targets.T)) / 2


def _soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1).mean()
