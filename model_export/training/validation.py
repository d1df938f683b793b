"""Measure zero-shot accuracy: class names in templates, no training on the classes (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model_export.architectures.encoders import ImageEncoder, TextEncoder
from model_export.data.loading import Encode
from service.model.prompts import prompts_for
from service.model.scoring import class_vectors

TOP = 5


@dataclass(frozen=True)
class LabelledImages:
    """A held-out set: pixels uint8 ``[images, size, size, 3]``; labels are indices into ``class_names``."""

    name: str
    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Accuracy:
    """Shares of images whose class ranked first, and in the first five."""

    top1: float
    top5: float


@torch.no_grad()
def zero_shot(
    image_encoder: ImageEncoder,
    text_encoder: TextEncoder,
    data: LabelledImages,
    templates: Sequence[str],
    encode: Encode,
    *,
    device: torch.device,
    batch_size: int = 500,
) -> Accuracy:
    """Measure two encoders on a labelled set.

    Args:
        image_encoder: keeps its mode, as does ``text_encoder``.
        text_encoder: of the same model.
        data: the images and their classes.
        templates: make the prompts of a class, which are averaged as unit vectors.
        encode: converts texts to int64 ids ``[texts, length]``.
        device: holds both encoders.
        batch_size: images or prompts encoded at a time.
    """
    was_training = image_encoder.training
    image_encoder.eval()
    text_encoder.eval()
    try:
        ids = torch.from_numpy(encode(prompts_for(data.class_names, templates))).to(device)
        prompts = torch.cat([text_encoder(part).float() for part in torch.split(ids, batch_size)])
        vectors = torch.from_numpy(class_vectors(prompts.cpu().numpy(), len(templates))).to(device)
        hits = np.zeros(2)
        for start in range(0, len(data.pixels), batch_size):
            pixels = torch.from_numpy(data.pixels[start : start + batch_size]).to(device)
            images = image_encoder(pixels).float()
            top = (images @ vectors.T).topk(min(TOP, len(vectors)), dim=1).indices.cpu().numpy()
            right = top == data.labels[start : start + batch_size, None]
            hits += (right[:, 0].sum(), right.any(axis=1).sum())
        top1, top5 = hits / len(data.pixels)
        return Accuracy(float(top1), float(top5))
    finally:
        image_encoder.train(was_training)
        text_encoder.train(was_training)
