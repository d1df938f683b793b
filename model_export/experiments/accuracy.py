"""Measure an arm: the share of pictures whose class has the highest score."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model_export.architectures.encoders import ImageEncoder, TextEncoder
from model_export.data.captions import CaptionEncoder
from model_export.experiments.models import TextPredictor
from model_export.training.validation import LabelledImages, zero_shot
from service.model.prompts import prompts_for

_PICTURES = 50
"""Scored at a time: a decoder has logits of every class for each."""


def top1(
    image_encoder: ImageEncoder,
    text_encoder: TextEncoder,
    data: LabelledImages,
    templates: Sequence[str],
    encode: CaptionEncoder,
    *,
    device: torch.device,
) -> float:
    """Return the accuracy of a model on a split.

    Two encoders score by the cosine with the mean of a class's prompts; a predictor of texts by its own
    :meth:`TextPredictor.scores`, of which the mean over the templates is taken.

    Args:
        image_encoder: of the model; comes back in training mode, as does ``text_encoder``.
        text_encoder: of the same model, if it has a text tower.
        data: pictures and their classes.
        templates: make the prompts of a class.
        encode: turns texts into ids.
        device: of the model.
    """
    model = image_encoder.model
    if not isinstance(model, TextPredictor):
        return zero_shot(image_encoder, text_encoder, data, templates, encode, device=device).top1
    model.eval()
    try:
        return _of_predictor(model, image_encoder, data, templates, encode, device=device)
    finally:
        model.train()


@torch.no_grad()
def _of_predictor(
    model: TextPredictor,
    image_encoder: ImageEncoder,
    data: LabelledImages,
    templates: Sequence[str],
    encode: CaptionEncoder,
    *,
    device: torch.device,
) -> float:
    def ids(texts: Sequence[str]) -> Tensor:
        return torch.from_numpy(encode(texts)).to(device)

    names = ids(data.class_names)
    prompts = [ids(prompts_for(data.class_names, [template])) for template in templates]
    right = 0
    for start in range(0, len(data.pixels), _PICTURES):
        pixels = image_encoder.prepare(torch.from_numpy(data.pixels[start : start + _PICTURES]).to(device))
        scores = torch.stack([model.scores(pixels, names, each) for each in prompts]).mean(dim=0)
        labels = torch.from_numpy(data.labels[start : start + _PICTURES]).to(device)
        right += int((scores.argmax(dim=1) == labels).sum())
    return right / len(data.pixels)
