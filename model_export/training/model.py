"""Build the model that a run trains: new, or with the weights of a start or a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from model_export.architectures.layers import Attention, ResidualAttentionBlock
from model_export.architectures.towers import TwoTowers
from model_export.checkpoints.model_source import LOGIT_BIAS
from model_export.errors import RecipeError
from model_export.families.clip.modified_resnet import ModifiedResNet
from model_export.families.clip.residual_conv import ResidualConv
from model_export.families.siglip.model import INITIAL_LOGIT_BIAS, INITIAL_LOGIT_SCALE
from model_export.training.blueprint import Blueprint
from model_export.training.recipe import Recipe, Tower

Loss: TypeAlias = Literal["softmax", "sigmoid"]


def loss_of(recipe: Recipe, blueprint: Blueprint, names: Collection[str]) -> Loss:
    """Return the loss that a recipe states, or else that of the model; with a bias among the names, a sigmoid's.

    Args:
        recipe: may state a loss.
        blueprint: of the model.
        names: of the weights to start from; none if they are new.

    Raises:
        RecipeError: the model's scores need the other loss, or the recipe smooths labels of a sigmoid.
    """
    biased = blueprint.family.has_bias or LOGIT_BIAS in names
    loss: Loss = recipe.objective.loss or ("sigmoid" if biased else "softmax")
    if loss == "softmax" and blueprint.family.has_bias:
        msg = (
            f"objective.loss is softmax, which does not train the bias of a {blueprint.family.title}: "
            'use "sigmoid", or leave the key out'
        )
        raise RecipeError(msg)
    if loss == "sigmoid" and recipe.distillation is not None:
        msg = "distillation learns a softmax over the batch; leave it out with the sigmoid loss"
        raise RecipeError(msg)
    if loss == "sigmoid" and recipe.optim.label_smoothing:
        msg = "optim.label_smoothing is of the softmax loss; leave it out with the sigmoid loss"
        raise RecipeError(msg)
    return loss


def build_model(
    blueprint: Blueprint,
    loss: Loss,
    weights: Mapping[str, Tensor] | None,
    *,
    frozen: tuple[Tower, ...] = (),
    checkpoint_blocks: bool = False,
    compiled: bool = False,
) -> TwoTowers:
    """Return a model in training mode, on the CPU.

    Args:
        blueprint: of the model.
        loss: with "sigmoid" the model has a `logit_bias`, of any family.
        weights: to load; what they lack is new, from torch's random state.
        frozen: towers that stay as they are: without gradients, and in evaluation mode.
        checkpoint_blocks: compute the blocks of transformers again in the backward pass, to save memory.
        compiled: the towers will be compiled, and keep torch's own attention, which the compiler knows.
    """
    model = blueprint.family.build(blueprint.config)
    if loss == "sigmoid" and not blueprint.family.has_bias:
        model.register_parameter(LOGIT_BIAS, nn.Parameter(torch.tensor(INITIAL_LOGIT_BIAS)))
        model.logit_scale.data.fill_(math.log(INITIAL_LOGIT_SCALE))
    if weights is not None:
        own = model.state_dict()
        # The scale of a softmax would saturate every sigmoid: without a bias, both start as SigLIP's.
        kept = own.keys() - weights.keys() | ({"logit_scale"} if LOGIT_BIAS in own.keys() - weights.keys() else set())
        model.load_state_dict({name: own[name] if name in kept else weights[name] for name in own})
    for tower in frozen:
        tower_of(model, tower).requires_grad_(requires_grad=False)
    for module in model.modules():
        if isinstance(module, ResidualAttentionBlock):
            module.recomputes = checkpoint_blocks
        elif isinstance(module, Attention):
            module.own_gradients = not compiled
    train_mode(model, frozen)
    return model


def channels_last(model: TwoTowers) -> bool:
    """Put a pixel's channels side by side in a tower of convolutions, twice as fast; of others return False."""
    if not isinstance(model.visual, ModifiedResNet | ResidualConv):
        return False
    model.visual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return True


def train_mode(model: TwoTowers, frozen: tuple[Tower, ...]) -> None:
    """Put a model into training mode, but for frozen towers: their batch norms keep their statistics."""
    model.train()
    for tower in frozen:
        tower_of(model, tower).eval()


def tower_of(model: TwoTowers, tower: Tower) -> nn.Module:
    """Return a tower by the recipe's name of it."""
    return model.visual if tower == "image" else model.text
