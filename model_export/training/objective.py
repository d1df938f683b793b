"""The symmetric contrastive objective (paper, Figure 3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


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
        images: float ``[batch, dim]`` of any length; normalised here, in fp32.
        texts: float ``[batch, dim]``, row i the caption of row i of ``images``.
        log_scale: scalar, the logarithm of the logit scale.
        same: bool ``[batch, batch]``; true entries off the diagonal count neither as positive nor as negative.
        label_smoothing: share of the target spread over all entries that count.

    Returns:
        Scalar, fp32.
    """
    images = functional.normalize(images.float(), dim=1)
    texts = functional.normalize(texts.float(), dim=1)
    logits = log_scale.float().exp() * images @ texts.T  # [batch of images, batch of texts]
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
