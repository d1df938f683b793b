"""A training run from its recipe to its weights."""

from __future__ import annotations

import itertools
import math
import shutil
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from model_export.architectures.build import build
from model_export.architectures.clip import ClipModel
from model_export.architectures.config import ClipConfig, VisionTransformerConfig
from model_export.architectures.encoders import ImageEncoder, TextEncoder
from model_export.architectures.residual_conv import ResidualConv, WhiteningStem
from model_export.checkpoints.layouts import RECIPE
from model_export.checkpoints.training_run import CONFIG, TOKENIZER, WEIGHTS
from model_export.data.loading import Batch, batches
from model_export.errors import TrainingError
from model_export.files import replacing, write_json
from model_export.training import checkpoints
from model_export.training.objective import contrastive_loss, same_meaning
from model_export.training.optimizer import Optimizer, learning_rate
from model_export.training.preparation import Prepared, prepare
from model_export.training.progress import Reporter
from model_export.training.recipe import Recipe, digest, read_recipe
from model_export.training.validation import zero_shot
from service.model.manifest import FileEntry

CHECKPOINTS = "checkpoints"
_WHITENING_BATCHES = 8


def train(
    recipe_path: Path,
    *,
    out: Path | None = None,
    data: Path | None = None,
    start_from: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    console: Console | None = None,
) -> Path:
    """Train as a recipe says, and write a training run.

    The run's folder holds ``config.json``, ``tokenizer.json``, ``model.safetensors``, ``recipe.toml``,
    ``metrics.jsonl``, TensorBoard's files and checkpoints.

    Args:
        recipe_path: a TOML file.
        out: the run's folder; by default ``runs/NAME`` in the current folder.
        data: the folder of the recipe's data files; the recipe's own by default.
        start_from: a finished run of the same model, whose weights and tokenizer this one begins with; by default
            both are new.
        resume: continue a run that was stopped, from its newest checkpoint. On the CPU the weights at the end
            are the same, bit for bit, as if it had never been stopped.
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA where there is one.
        console: where progress is shown.

    Returns:
        The run's folder.

    Raises:
        RecipeError: the recipe is wrong.
        DataError: a file, column or row is not readable.
        TrainingError: the folder is taken, there is nothing to resume or to start from, or the loss became non-finite.
    """
    console = console or Console()
    recipe = read_recipe(recipe_path, data=data)
    run = out or Path("runs") / recipe.name
    place = _device(device)
    checkpoint = _open_run(run, recipe, resume=resume)
    first_step = checkpoint["step"] if checkpoint else 0

    console.print(f"[bold]{recipe.name}[/]: reading {len(recipe.data.files)} files of pairs", highlight=False)
    if start_from and not checkpoint:
        _take_tokenizer(start_from, run)
    prepared = prepare(recipe, run, own_tokenizer=first_step == 0 and start_from is None)
    if first_step == 0:
        shutil.copyfile(recipe_path, run / RECIPE)
        write_json(run / CONFIG, _config(recipe, prepared.model_config, start_from))
    trainer = _Trainer.start(recipe, prepared, run, place)
    if checkpoint:
        trainer.model.load_state_dict(checkpoint["model"])
        trainer.optimizer.load_state_dict(dict(checkpoint["optimizer"]))
        trainer.seconds = checkpoint["seconds"]
    elif start_from:
        _take_weights(start_from, trainer.model)
    else:
        trainer.whiten()
    image, text = (_millions(tower) for tower in (trainer.model.visual, trainer.model.text))
    console.print(
        f"{prepared.train_rows:,} pairs to train, {prepared.validation_rows:,} held out · image tower {image}, "
        f"text tower {text} · {prepared.plan.total_steps:,} steps of {recipe.optim.batch_size} on {place.type}"
        + (f", from step {first_step:,}" if first_step else ""),
        highlight=False,
        soft_wrap=True,
    )
    with Reporter(run, console, total_steps=prepared.plan.total_steps, first_step=first_step) as reporter:
        trainer.loop(reporter, first_step)
    trainer.save_weights()
    console.print(f"weights: {run / WEIGHTS}  ({trainer.seconds / 60:.1f} minutes of training)", highlight=False)
    return run


@dataclass
class _Trainer:
    recipe: Recipe
    prepared: Prepared
    run: Path
    device: torch.device
    model: ClipModel
    image_encoder: ImageEncoder
    text_encoder: TextEncoder
    optimizer: Optimizer
    seconds: float = 0.0

    @classmethod
    def start(cls, recipe: Recipe, prepared: Prepared, run: Path, device: torch.device) -> _Trainer:
        torch.manual_seed(recipe.seed)
        # Exact resumption needs every kernel to add in the same order each time.
        torch.use_deterministic_algorithms(device.type == "cpu")
        # Filling memory first is for finding kernels that do not write all of it: a help in debugging, 7% of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        model = build(prepared.model_config).to(device)
        if not isinstance(prepared.model_config.image, VisionTransformerConfig):
            # Convolutions run about twice as fast on pixels that lie together.
            model.visual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optim = recipe.optim
        return cls(
            recipe,
            prepared,
            run,
            device,
            model,
            ImageEncoder(model, recipe.input.mean, recipe.input.std).to(device),
            TextEncoder(model).to(device),
            Optimizer(
                model,
                lr=optim.lr,
                weight_decay=optim.weight_decay,
                betas=optim.betas,
                eps=optim.eps,
                muon_lr=optim.muon_lr,
            ),
        )

    def whiten(self) -> None:
        """Give a whitening stem its kernel, from the pictures of the first batches."""
        tower = self.model.visual
        if not isinstance(tower, ResidualConv) or not isinstance(tower.stem, WhiteningStem):
            return
        plans = itertools.islice(self.prepared.plan.batches(), _WHITENING_BATCHES)
        pixels = torch.cat([self.prepared.loader[plan].pixels for plan in plans])
        tower.stem.whiten(self.image_encoder.normalise(pixels.to(self.device)))

    def loop(self, reporter: Reporter, first_step: int) -> None:
        plan, recipe = self.prepared.plan, self.recipe
        started = logged = time.monotonic()
        before = self.seconds
        since_log = 0
        stream = batches(
            self.prepared.loader,
            plan,
            first_step=first_step,
            workers=recipe.data.workers,
            pin_memory=self.device.type == "cuda",
        )
        for batch in stream:
            values = self._step(batch)
            step, done = batch.step, batch.step + 1
            since_log += len(batch.pixels)
            self.seconds = before + time.monotonic() - started
            reporter.advance(step)
            last = done == plan.total_steps
            if done % recipe.log_every == 0 or last:
                rate = since_log / (time.monotonic() - logged)
                reporter.metrics(step, {**values, "pairs_per_s": rate, "seconds": self.seconds})
            if last or (recipe.evaluate_every and done % recipe.evaluate_every == 0):
                self._evaluate(reporter, step)
            if done % recipe.checkpoint_every == 0 and not last:
                self._checkpoint(done)
            if done % recipe.log_every == 0:
                logged, since_log = time.monotonic(), 0

    def _step(self, batch: Batch) -> dict[str, float]:
        optim = self.recipe.optim
        rate = learning_rate(
            batch.step,
            total_steps=self.prepared.plan.total_steps,
            warmup_steps=optim.warmup_steps,
        )
        batch = Batch(batch.step, *(tensor.to(self.device, non_blocking=True) for tensor in batch[1:]))
        with self._autocast():
            images = self.model.encode_image(self.image_encoder.normalise(batch.pixels))
            texts = self.model.encode_text(batch.ids)[batch.caption]
        loss = contrastive_loss(
            images,
            texts,
            self.model.logit_scale,
            same_meaning(batch.label, batch.noun),
            label_smoothing=optim.label_smoothing,
        )
        value = loss.item()
        if not math.isfinite(value):
            msg = (
                f"the loss became {value} at step {batch.step + 1}; the last checkpoint is kept. "
                "Lower optim.lr, lengthen optim.warmup_steps, set optim.clip_grad_norm, or try precision = 'fp32'"
            )
            raise TrainingError(msg)
        self.model.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        values = {"loss": value, "lr": rate * optim.lr, "logit_scale": self.model.logit_scale.exp().item()}
        if optim.clip_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_grad_norm)
            values["grad_norm"] = norm.item()
        self.optimizer.step(rate)
        self.model.clip_logit_scale()
        return values

    def _evaluate(self, reporter: Reporter, step: int) -> None:
        templates = self.recipe.captions.template_sets["default"]
        for data in self.prepared.validation():
            with self._autocast():
                accuracy = zero_shot(
                    self.image_encoder,
                    self.text_encoder,
                    data,
                    templates,
                    self.prepared.loader.encode,
                    device=self.device,
                )
            reporter.metrics(step, {f"{data.name}/top1": accuracy.top1, f"{data.name}/top5": accuracy.top5})
            if math.isfinite(accuracy.top1):
                reporter.say(
                    f"step {step + 1}: zero-shot on {data.name}, {len(data.pixels):,} held-out pictures of "
                    f"{len(data.class_names)} classes: top-1 {accuracy.top1:.1%}, top-5 {accuracy.top5:.1%}"
                )

    def _checkpoint(self, step: int) -> None:
        checkpoints.save(
            self.run / CHECKPOINTS,
            checkpoints.Checkpoint(
                step=step,
                recipe_digest=digest(self.recipe),
                model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict(),
                seconds=self.seconds,
            ),
        )

    def save_weights(self) -> None:
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        with replacing(self.run / WEIGHTS) as partial:
            save_file(tensors, partial)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.optim.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        msg = "CUDA was asked for and torch sees no GPU; install a CUDA build of torch, or use --device cpu"
        raise TrainingError(msg)
    if name not in ("auto", "cpu", "cuda"):
        msg = f"unknown device {name!r}: use cpu, cuda or auto"
        raise TrainingError(msg)
    return torch.device("cuda" if name != "cpu" and available else "cpu")


def _open_run(run: Path, recipe: Recipe, *, resume: bool) -> checkpoints.Checkpoint | None:
    if (run / WEIGHTS).exists():
        msg = f"{run}: holds a finished run; name another folder with --out"
        raise TrainingError(msg)
    checkpoint = checkpoints.latest(run / CHECKPOINTS)
    if resume and checkpoint is None:
        msg = f"{run}: there is no checkpoint to resume from"
        raise TrainingError(msg)
    if not resume and checkpoint is not None:
        msg = f"{run}: holds an unfinished run; continue it with --resume, or name another folder with --out"
        raise TrainingError(msg)
    if checkpoint and checkpoint["recipe_digest"] != digest(recipe):
        msg = f"{run}: was started from another recipe than this; resume with {run / RECIPE}"
        raise TrainingError(msg)
    run.mkdir(parents=True, exist_ok=True)
    return checkpoint


def _take_tokenizer(source: Path, run: Path) -> None:
    if not (source / WEIGHTS).is_file() or not (source / TOKENIZER).is_file():
        msg = f"{source}: not a finished run to start from; it must hold {WEIGHTS} and {TOKENIZER}"
        raise TrainingError(msg)
    shutil.copyfile(source / TOKENIZER, run / TOKENIZER)


def _take_weights(source: Path, model: ClipModel) -> None:
    try:
        model.load_state_dict(load_file(source / WEIGHTS))
    except (SafetensorError, OSError, RuntimeError) as error:
        msg = f"{source / WEIGHTS}: not weights of the recipe's model; use the [model] of {source / RECIPE}"
        raise TrainingError(msg) from error


def _config(recipe: Recipe, model: ClipConfig, start_from: Path | None) -> dict[str, Any]:
    size = model.image.image_size
    source = f"trained from {recipe.name}"
    if start_from:
        source += f", beginning with the weights sha256:{FileEntry.of(start_from / WEIGHTS).sha256}"
    return {
        "name": recipe.name,
        "model": model.model_dump(mode="json"),
        "image": {"height": size, "width": size, **recipe.input.model_dump(mode="json")},
        "templates": {name: list(templates) for name, templates in recipe.captions.template_sets.items()},
        "provenance": {"source": source, "licence": recipe.licence},
    }


def _millions(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f}M"
