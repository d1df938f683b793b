"""A teacher, whose similarities a model learns beside its own pairs: a bundle, or any checkpoint that is exported."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from model_export.architectures.encoders import ImageEncoder, TextEncoder
from model_export.checkpoints.at_hand import at_hand
from model_export.checkpoints.load import load_model
from model_export.checkpoints.model_source import SourceOptions
from model_export.errors import RecipeError
from model_export.training.blueprint import Blueprint
from model_export.training.precision import autocast
from model_export.training.recipe import Recipe
from service.model.engine.engine import OnnxEngine
from service.model.engine.providers import resolve
from service.model.loading import load_bundle
from service.model.manifest import MANIFEST, TOKENIZER, ImageSection, SigmoidScoring, SoftmaxScoring, TextSection

_BATCH = 64
"""Pictures or texts that a teacher encodes at a time."""

_PIXELS = ("height", "width", "resize", "interpolation", "crop")
"""Fields of preprocessing that must be the student's; mean and deviation are inside a teacher."""


@dataclass(frozen=True)
class Teacher:
    """Encodes the batches of a run as unit vectors.

    Attributes:
        name: as the recipe has it, for messages.
        digest: of its weights; of a bundle, its revision.
        image: how a picture is prepared.
        text: how a text is prepared.
        tokenizer: the bytes of its ``tokenizer.json``.
        scale: of its logits, exponentiated.
        encode_images: uint8 ``[batch, h, w, 3]`` to float32 ``[batch, dim]``, on the pictures' device.
        encode_texts: int64 ``[batch, length]`` to the same.
    """

    name: str
    digest: str
    image: ImageSection
    text: TextSection
    tokenizer: bytes
    scale: float
    encode_images: Callable[[Tensor], Tensor]
    encode_texts: Callable[[Tensor], Tensor]

    def vectors(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the vectors of a batch's pictures and of its captions."""
        return (
            torch.cat([self.encode_images(part) for part in torch.split(pixels, _BATCH)]),
            torch.cat([self.encode_texts(part) for part in torch.split(ids, _BATCH)]),
        )

    def check_fits(self, student: Blueprint, recipe: Recipe) -> None:
        """Check that teacher and student can read the same batches.

        Raises:
            RecipeError: they prepare pictures or texts in different ways.
        """
        mine, theirs = student.image.model_dump(mode="json"), self.image.model_dump(mode="json")
        if different := [key for key in _PIXELS if mine[key] != theirs[key]]:
            fields = "; ".join(f"{key} {theirs[key]}, the student {mine[key]}" for key in different)
            msg = f"{self.name}: prepares pictures in another way than the student ({fields}); take another teacher"
            raise RecipeError(msg)
        if any(phase.size != self.image.height for phase in recipe.optim.phases):
            msg = f"{self.name}: takes pictures of {self.image.height} pixels only; leave optim.phases out"
            raise RecipeError(msg)
        if self.text != student.text or self.tokenizer != student.tokenizer:
            msg = (
                f"{self.name}: reads texts in another way than the student (tokenizer, cleaning or context); take a "
                "teacher with the student's tokenizer, or a new student, which takes the teacher's"
            )
            raise RecipeError(msg)


def open_teacher(recipe: Recipe, device: torch.device, console: Console | None = None) -> Teacher | None:
    """Open the teacher that a recipe names; return None without one.

    Raises:
        RecipeError: the teacher is no softmax model.
        SourceError: the teacher cannot be fetched or read.
        BundleError: the teacher is a bundle that is damaged.
    """
    said = recipe.distillation
    if said is None:
        return None
    path = Path(said.teacher)
    if (path / MANIFEST).is_file():
        bundle = load_bundle(path)
        manifest = bundle.manifest
        engine = OnnxEngine.load(bundle, resolve("cpu", compute="fp32"))
        return Teacher(
            said.teacher,
            manifest.revision,
            manifest.image,
            manifest.text,
            (path / TOKENIZER).read_bytes(),
            _scale(said.teacher, manifest.scoring),
            lambda pixels: torch.from_numpy(engine.encode_images(pixels.cpu().numpy())).to(pixels.device),
            lambda ids: torch.from_numpy(engine.encode_texts(ids.cpu().numpy())).to(ids.device),
        )
    place, options = at_hand(said.teacher, SourceOptions(), console=console)
    source = load_model(place, options)
    precision = partial(autocast, recipe.optim.precision, device)
    return Teacher(
        said.teacher,
        source.provenance.source_sha256 or "",
        source.image,
        source.text,
        source.tokenizer,
        _scale(said.teacher, source.scoring),
        _encoder(ImageEncoder(source.model, source.image.mean, source.image.std).eval().to(device), precision),
        _encoder(TextEncoder(source.model).eval().to(device), precision),
    )


def _encoder(
    encoder: torch.nn.Module, precision: Callable[[], AbstractContextManager[object]]
) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def encoded(batch: Tensor) -> Tensor:
        with precision():
            vectors: Tensor = encoder(batch).float()
        return vectors

    return encoded


def _scale(name: str, scoring: SoftmaxScoring | SigmoidScoring) -> float:
    if not isinstance(scoring, SoftmaxScoring):
        msg = f"{name}: scores with sigmoids; a teacher needs a softmax over the batch"
        raise RecipeError(msg)
    return scoring.logit_scale
