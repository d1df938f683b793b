"""Train one arm with the trainer of `anyclass-export train`, and measure it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model_export.architectures.encoders import ImageEncoder, TextEncoder
from model_export.architectures.towers import TwoTowers
from model_export.data.captions import is_usable
from model_export.experiments.accuracy import top1
from model_export.experiments.arms import TEST, Arm, Result
from model_export.experiments.material import Material
from model_export.experiments.models import BagOfWords, Captioning, MlpTowers, PredictionGradients, TextPredictor
from model_export.experiments.widths import scaled
from model_export.families.clip.config import ClipConfig
from model_export.training.gradients import Gradients
from model_export.training.model import build_model, channels_last
from model_export.training.optimizer import Optimizer
from model_export.training.precision import autocast, make_exact
from model_export.training.preparation import Prepared
from model_export.training.progress import Silence
from model_export.training.ranks import Ranks
from model_export.training.recipe import Recipe
from model_export.training.trainer import Trainer
from model_export.training.validation import LabelledImages
from service.model.prompts import fill

_COUNTED_STEPS = 3
"""Steps of an arm whose operations are counted: their texts differ in length."""


class _Steps(Silence):
    """Passes on the number of finished steps, and nothing else."""

    def __init__(self, on_step: Callable[[int], None]) -> None:
        super().__init__()
        self._on_step = on_step

    def advance(self, step: int) -> None:
        """Report the end of a step."""
        self._on_step(step + 1)


def train_arm(
    arm: Arm, material: Material, ranks: Ranks, on_step: Callable[[int], None], *, validates: bool = True
) -> Result:
    """Train an arm from its seed, and measure it.

    Args:
        arm: to train.
        material: data and splits.
        ranks: a single one, with its device.
        on_step: is called with the number of finished steps.
        validates: whether its accuracy on the validation split is needed, to choose a learning rate.

    Raises:
        DataError: a row cannot be read.
        RecipeError: the recipe's towers or batch do not fit.
        TrainingError: the loss became non-finite.
    """
    recipe = material.recipe
    training = recipe.training(seed=arm.seed, rate=arm.rate, budget=arm.budget)
    captions = material.captions(arm.variant)
    prepared = material.prepare(arm, captions, training)
    with tempfile.TemporaryDirectory(prefix="anyclass-arm-") as folder:
        model, tower = _model(arm, material, captions, ranks)
        gflops = _gflops(_trainer(model, training, prepared, Path(folder), ranks))
        model, tower = _model(arm, material, captions, ranks)
        trainer = _trainer(model, training, prepared, Path(folder), ranks)
        trainer.whiten()
        trainer.loop(_Steps(on_step), 0)
    sets = dict(recipe.captions.template_sets)
    measure = partial(_measure, trainer, material)
    accuracy = {TEST: measure(material.test, sets.pop("default"))}
    if arm.variant.template_sets:
        accuracy |= {name: measure(material.test, templates) for name, templates in sets.items()}
    return Result(
        variant=arm.variant.name,
        budget=arm.budget,
        rate=arm.rate,
        seed=arm.seed,
        validation=measure(material.validation, recipe.captions.template_sets["default"]) if validates else None,
        accuracy=accuracy,
        gflops=gflops,
        seconds=trainer.seconds,
        tower=tower,
        batches=_digest_of_batches(prepared),
        facts=material.facts,
    )


def _measure(trainer: Trainer, material: Material, data: LabelledImages, templates: Sequence[str]) -> float:
    with autocast(trainer.recipe.optim.precision, trainer.device):
        return top1(
            trainer.image_encoder,
            trainer.text_encoder,
            data,
            templates,
            material.encode,
            device=trainer.device,
        )


def _model(arm: Arm, material: Material, captions: list[str | None], ranks: Ranks) -> tuple[TwoTowers, str]:
    """Build the model of an arm, and return the digest of its image tower's initial bits.

    Both towers are always built first, from the seed alone. So the image tower does not depend on what is trained.
    """
    make_exact(arm.seed, ranks.device)
    blueprint = material.blueprint
    assert isinstance(blueprint.config, ClipConfig)  # noqa: S101 - a recipe's towers are a CLIP's
    towers = build_model(replace(blueprint, config=scaled(blueprint.config, arm.variant.width)), "softmax", None)
    digest = _digest_of(towers.visual.state_dict())
    embed_dim, vocabulary = blueprint.config.embed_dim, blueprint.config.text.vocab_size
    model: TwoTowers = towers
    match arm.variant.objective:
        case "bag of words":
            model = BagOfWords(towers, embed_dim, _rarity(material, captions, vocabulary))
        case "captioning":
            section, text = material.recipe.objectives.decoder, blueprint.text
            assert text.end_of_text_id is not None  # noqa: S101 - a new CLIP has one
            model = Captioning(towers, section, vocabulary, text.max_length, text.end_of_text_id)
        case "contrastive":
            if arm.variant.mlp:
                model = MlpTowers(towers, embed_dim)
    return model.train().to(ranks.device), digest


def _trainer(model: TwoTowers, recipe: Recipe, prepared: Prepared, folder: Path, ranks: Ranks) -> Trainer:
    """Put a trainer around a model; the same one for every objective but for the gradients."""
    optim, image = recipe.optim, prepared.blueprint.image
    in_channels_last = channels_last(model)
    image_encoder = ImageEncoder(model, image.mean, image.std).to(ranks.device)
    image_encoder.channels_last = in_channels_last
    kind = PredictionGradients if isinstance(model, TextPredictor) else Gradients
    return Trainer(
        recipe,
        prepared,
        folder,
        ranks,
        "softmax",
        model,
        image_encoder,
        TextEncoder(model).to(ranks.device),
        kind(model, image_encoder, "softmax", autocast=partial(autocast, optim.precision, ranks.device)),
        torch.amp.GradScaler(ranks.device.type, enabled=False),
        Optimizer(model, lr=optim.lr, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps),
        None,
    )


def _gflops(trainer: Trainer) -> float:
    """Count the operations of a training, as the mean of a few of its steps times their number."""
    steps = trainer.prepared.plan.total_steps
    chosen = sorted({round(share * (steps - 1)) for share in np.linspace(0, 1, _COUNTED_STEPS)})
    # torch counts the plain kernel of attention on every device, but not each of the fused ones.
    plain = sdpa_kernel(SDPBackend.MATH) if trainer.device.type == "cpu" else nullcontext()
    with plain, FlopCounterMode(display=False) as counter:
        for step in chosen:
            trainer.gradients(trainer.prepared.loader[step].to(trainer.device))
    return float(counter.get_total_flops() / len(chosen) * steps / 1e9)


def _rarity(material: Material, captions: list[str | None], vocabulary: int) -> Tensor:
    """Return the inverse document frequency of each token in the captions that are trained on, without templates."""
    texts = [text for row in material.trained.tolist() if (text := captions[row]) is not None and is_usable(text)]
    templates = material.recipe.captions.templates
    encode = material.encode
    found = np.zeros(vocabulary)
    for start in range(0, len(texts), 4096):
        part = texts[start : start + 4096]
        ids = encode([fill(templates[(start + i) % len(templates)], text) for i, text in enumerate(part)])
        pairs = np.unique(np.stack([np.repeat(np.arange(len(ids)), ids.shape[1]), ids.ravel()]), axis=1)
        found += np.bincount(pairs[1], minlength=vocabulary)
    weights = np.log((1 + len(texts)) / (1 + found))
    weights[encode([""])[0]] = 0.0
    return torch.from_numpy(weights).float()


def _digest_of(tensors: dict[str, Tensor]) -> str:
    hashed = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        hashed.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()


def _digest_of_batches(prepared: Prepared) -> str:
    plan = prepared.plan
    hashed = hashlib.sha256()
    for step in range(plan.total_steps):
        hashed.update(plan.batch(step).rows.tobytes())
    return hashed.hexdigest()
