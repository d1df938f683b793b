"""Measure a model, and the moving average of its weights, on the held-out pictures of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch

from model_export.architectures.encoders import ImageEncoder, TextEncoder
from model_export.training.precision import autocast
from model_export.training.preparation import Prepared
from model_export.training.validation import zero_shot

Encoders: TypeAlias = Mapping[str, tuple[ImageEncoder, TextEncoder]]
"""Both encoders of a model by the prefix of its metrics: ``""``, or ``"ema_"`` for averaged weights."""


def held_out_accuracy(
    prepared: Prepared, encoders: Encoders, device: torch.device
) -> Iterator[tuple[dict[str, float], str | None]]:
    """Yield metrics of each held-out set, and a line for people unless none of its classes can be told apart."""
    recipe = prepared.recipe
    for data in prepared.validation():
        values: dict[str, float] = {}
        shown = []
        for name, (image_encoder, text_encoder) in encoders.items():
            with autocast(recipe.optim.precision, device):
                accuracy = zero_shot(
                    image_encoder,
                    text_encoder,
                    data,
                    recipe.captions.template_sets["default"],
                    prepared.loader.encode,
                    device=device,
                )
            values |= {f"{data.name}/{name}top1": accuracy.top1, f"{data.name}/{name}top5": accuracy.top5}
            if math.isfinite(accuracy.top1):
                of_average = " of the averaged weights" if name else ""
                shown.append(f"top-1{of_average} {accuracy.top1:.1%}, top-5 {accuracy.top5:.1%}")
        yield (
            values,
            (
                f"zero-shot on {data.name}, {len(data.pixels):,} held-out pictures of "
                f"{len(data.class_names)} classes: {'; '.join(shown)}"
            )
            if shown
            else None,
        )
