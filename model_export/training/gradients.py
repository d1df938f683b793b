"""The loss of a batch, and the gradients of a model: at once, or exactly the same in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from model_export.architectures.encoders import ImageEncoder
from model_export.architectures.towers import TwoTowers
from model_export.checkpoints.model_source import LOGIT_BIAS
from model_export.data.loading import Batch
from model_export.errors import RecipeError
from model_export.training.model import Loss
from model_export.training.objective import contrastive_loss, distillation_loss, same_meaning, sigmoid_loss
from model_export.training.ranks import ALONE, Ranks
from model_export.training.recipe import Recipe, Tower
from model_export.training.sharding import whole
from model_export.training.teacher import Teacher

Objective: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""The loss of a rank's rows by the vectors of their pictures and of their captions, float ``[rows, dim]``."""


def _as_it_is(loss: Tensor) -> Tensor:
    return loss


@dataclass(frozen=True)
class Gradients:
    """Adds the gradients of a batch's loss to a model's parameters; of several ranks each has a part of the batch.

    Attributes:
        image_encoder: normalises the pixels of the model.
        loss: of the batch.
        label_smoothing: of the softmax loss.
        chunk: of the sigmoid loss.
        ignore_same_meaning: whether pairs of one class or text are not each other's negatives.
        frozen: towers without gradients.
        micro_batch: pairs whose activations are in memory at a time; None for all. Loss and gradients are those of
            the whole batch (GradCache, Gao et al. 2021): vectors are computed first, without a graph; the loss gives
            their gradients; then each micro-batch is computed again, from the same random state, and its vectors'
            gradients go back through it.
        teacher: whose similarities are learned too.
        distillation: the share of that in the loss, 0 to 1.
        autocast: makes the context of lower precision.
        scale: applied to the loss before the backward pass.
        ranks: that share the batch.
        divided: whether each of them has a part of every weight.
    """

    model: TwoTowers
    image_encoder: ImageEncoder
    loss: Loss
    label_smoothing: float = 0.0
    chunk: int | None = None
    ignore_same_meaning: bool = True
    frozen: tuple[Tower, ...] = ()
    micro_batch: int | None = None
    teacher: Teacher | None = None
    distillation: float = 0.0
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    scale: Callable[[Tensor], Tensor] = _as_it_is
    ranks: Ranks = ALONE
    divided: bool = False

    def __call__(self, batch: Batch) -> Tensor:
        """Return the loss of a batch, of which this rank's rows are given, on the model's device; without its graph."""
        loss = self._of_own_rows(batch)
        # Those of weights that are divided are averaged in the backward pass.
        self.ranks.average_gradients(whole(self.model.parameters()))
        return self.ranks.mean(loss)

    def _of_own_rows(self, batch: Batch) -> Tensor:
        objective = self._objective(batch)
        if self.micro_batch is not None and self.micro_batch < len(batch.pixels):
            if self.divided:
                # Weights are put together by all ranks at once, so each needs as many parts: one caption a picture.
                ids = batch.ids[batch.caption]
                batch = batch._replace(ids=ids, caption=torch.arange(len(ids), device=ids.device))
            return self._in_micro_batches(batch, objective, self.micro_batch)
        with torch.set_grad_enabled("image" not in self.frozen):
            images = self._images(batch.pixels)
        with torch.set_grad_enabled("text" not in self.frozen):
            texts = self._texts(batch.ids)
        return self._backward(objective(images, texts[batch.caption]))

    def _in_micro_batches(self, batch: Batch, objective: Objective, size: int) -> Tensor:
        parts = torch.split(batch.pixels, size), torch.split(batch.ids, size)
        encoders = self._images, self._texts
        vectors, states = zip(
            *(_vectors(encode, own) for encode, own in zip(encoders, parts, strict=True)), strict=True
        )
        names: tuple[Tower, ...] = ("image", "text")
        trained = [name not in self.frozen for name in names]
        images, texts = (each.requires_grad_(grad) for each, grad in zip(vectors, trained, strict=True))
        loss = self._backward(objective(images, texts[batch.caption]))
        with _statistics_kept(self.model):
            for encode, own, leaf, before in zip(encoders, parts, (images, texts), states, strict=True):
                if leaf.grad is None:
                    continue
                for part, gradient, state in zip(own, torch.split(leaf.grad, size), before, strict=True):
                    with _random_state(state, part.device):
                        torch.autograd.backward(encode(part), gradient)
        return loss

    def _images(self, pixels: Tensor) -> Tensor:
        with self.autocast():
            return self.model.encode_image(self.image_encoder.prepare(pixels))

    def _texts(self, ids: Tensor) -> Tensor:
        with self.autocast():
            return self.model.encode_text(ids)

    def _objective(self, batch: Batch) -> Objective:
        scale = self.model.logit_scale
        same = same_meaning(batch.label, batch.noun, ignore=self.ignore_same_meaning, ranks=self.ranks)
        if self.loss == "sigmoid":
            bias = self.model.get_parameter(LOGIT_BIAS)
            return partial(sigmoid_loss, log_scale=scale, bias=bias, same=same, chunk=self.chunk, ranks=self.ranks)
        own = partial(
            contrastive_loss, log_scale=scale, same=same, label_smoothing=self.label_smoothing, ranks=self.ranks
        )
        if self.teacher is None:
            return own
        images, texts = self.teacher.vectors(batch.pixels, batch.ids)
        taught = partial(
            distillation_loss,
            log_scale=scale,
            taught_images=images,
            taught_texts=texts[batch.caption],
            taught_scale=self.teacher.scale,
            ranks=self.ranks,
        )
        share = self.distillation
        return lambda images, texts: (1 - share) * own(images, texts) + share * taught(images, texts)

    def _backward(self, loss: Tensor) -> Tensor:
        torch.autograd.backward(self.scale(loss))
        return loss.detach()


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms that compute statistics of their batch."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]


def check_micro_batch(recipe: Recipe, model: TwoTowers) -> None:
    """Check that micro-batches are exact for a model, or accepted.

    Raises:
        RecipeError: the model has batch norms, and the recipe does not accept that.
    """
    optim = recipe.optim
    if optim.micro_batch is None or optim.accept_batch_norm or not batch_norms(model):
        return
    msg = (
        f"optim.micro_batch: the image tower has batch norms, which would see {optim.micro_batch} pairs in place of "
        f"{optim.batch_size}; set accept_batch_norm = true, or leave micro_batch out"
    )
    raise RecipeError(msg)


def check_ranks(model: TwoTowers, ranks: Ranks) -> None:
    """Check that a model's statistics are those of the whole batch.

    Raises:
        RecipeError: the model has batch norms, and several ranks share the batch.
    """
    if ranks.size == 1 or not batch_norms(model):
        return
    msg = (
        f"the image tower has batch norms: each of {ranks.size} processes would take statistics of its own part of the "
        "batch, and they would not train the model of one process. Use one process, freeze this tower, or take a vit"
    )
    raise RecipeError(msg)


@torch.no_grad()
def _vectors(encode: Callable[[Tensor], Tensor], parts: Sequence[Tensor]) -> tuple[Tensor, list[list[Tensor]]]:
    """Return the vectors of all parts, and the random states from which each was computed."""
    vectors, states = [], []
    for part in parts:
        states.append(_random_states(part.device))
        vectors.append(encode(part))
    return torch.cat(vectors), states


def _random_states(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@contextmanager
def _random_state(states: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Draw from earlier states within this block, and go on from the present ones after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(states[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(states[1], device)
        yield


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms within this block: they have seen these pairs already."""
    norms = batch_norms(model)
    tracked = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, before in zip(norms, tracked, strict=True):
            norm.track_running_stats = before
