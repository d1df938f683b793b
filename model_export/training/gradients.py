"""The loss of a batch, and the gradients of a model: at once, or exactly the same in micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from model_export.architectures.encoders import ImageEncoder
from model_export.architectures.towers import TwoTowers
from model_export.checkpoints.model_source import LOGIT_BIAS
from model_export.data.loading import Batch
from model_export.training.model import Loss
from model_export.training.objective import contrastive_loss, same_meaning, sigmoid_loss
from model_export.training.recipe import Tower


def _as_it_is(loss: Tensor) -> Tensor:
    return loss


@dataclass(frozen=True)
class Gradients:
    """Adds the gradients of a batch's loss to a model's parameters.

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
        autocast: makes the context of lower precision.
        scale: applied to the loss before the backward pass.
    """

    model: TwoTowers
    image_encoder: ImageEncoder
    loss: Loss
    label_smoothing: float = 0.0
    chunk: int | None = None
    ignore_same_meaning: bool = True
    frozen: tuple[Tower, ...] = ()
    micro_batch: int | None = None
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    scale: Callable[[Tensor], Tensor] = _as_it_is

    def __call__(self, batch: Batch) -> Tensor:
        """Return the loss of a batch on the model's device, without its graph."""
        same = same_meaning(batch.label, batch.noun, ignore=self.ignore_same_meaning)
        if self.micro_batch is not None and self.micro_batch < len(batch.pixels):
            return self._in_micro_batches(batch, same, self.micro_batch)
        with torch.set_grad_enabled("image" not in self.frozen):
            images = self._images(batch.pixels)
        with torch.set_grad_enabled("text" not in self.frozen):
            texts = self._texts(batch.ids)
        return self._backward(images, texts[batch.caption], same)

    def _in_micro_batches(self, batch: Batch, same: Tensor, size: int) -> Tensor:
        parts = torch.split(batch.pixels, size), torch.split(batch.ids, size)
        encoders = self._images, self._texts
        vectors, states = zip(
            *(_vectors(encode, own) for encode, own in zip(encoders, parts, strict=True)), strict=True
        )
        names: tuple[Tower, ...] = ("image", "text")
        trained = [name not in self.frozen for name in names]
        images, texts = (each.requires_grad_(grad) for each, grad in zip(vectors, trained, strict=True))
        loss = self._backward(images, texts[batch.caption], same)
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
            return self.model.encode_image(self.image_encoder.normalise(pixels))

    def _texts(self, ids: Tensor) -> Tensor:
        with self.autocast():
            return self.model.encode_text(ids)

    def _backward(self, images: Tensor, texts: Tensor, same: Tensor) -> Tensor:
        scale = self.model.logit_scale
        if self.loss == "sigmoid":
            bias = self.model.get_parameter(LOGIT_BIAS)
            loss = sigmoid_loss(images, texts, scale, bias, same, chunk=self.chunk)
        else:
            loss = contrastive_loss(images, texts, scale, same, label_smoothing=self.label_smoothing)
        torch.autograd.backward(self.scale(loss))
        return loss.detach()


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms that compute statistics of their batch."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.training]


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
