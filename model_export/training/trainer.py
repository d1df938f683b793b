"""The training loop: forward, loss, backward, step; metrics, evaluation and checkpoints in between."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from model_export.architectures.encoders import ImageEncoder, TextEncoder
from model_export.checkpoints.training_run import WEIGHTS
from model_export.data.loading import Batch, batches
from model_export.data.tally import Tally
from model_export.errors import TrainingError
from model_export.families.clip.config import VisionTransformerConfig
from model_export.families.clip.model import ClipModel
from model_export.families.clip.residual_conv import ResidualConv, WhiteningStem
from model_export.files import replacing
from model_export.training import checkpoints
from model_export.training.broken_rows import BrokenRows
from model_export.training.objective import contrastive_loss, same_meaning
from model_export.training.optimizer import Optimizer, learning_rate
from model_export.training.preparation import Prepared
from model_export.training.progress import Reporter
from model_export.training.recipe import Recipe, digest
from model_export.training.validation import zero_shot

_WHITENING_BATCHES = 8


@dataclass
class Trainer:
    """The state of a run between two steps, and the steps."""

    recipe: Recipe
    prepared: Prepared
    run: Path
    device: torch.device
    model: ClipModel
    image_encoder: ImageEncoder
    text_encoder: TextEncoder
    optimizer: Optimizer
    seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)
    """Of all batches of the run."""

    @classmethod
    def start(cls, recipe: Recipe, prepared: Prepared, run: Path, device: torch.device) -> Trainer:
        """Build a new model on ``device``, its encoders and its optimiser, all from the recipe's seed."""
        torch.manual_seed(recipe.seed)
        # Exact resumption needs kernels that always add in the same order.
        torch.use_deterministic_algorithms(device.type == "cpu")
        # Filling memory only helps to debug kernels that leave some of it unwritten, and costs 7% of a step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        model = ClipModel(prepared.model_config).to(device)
        if not isinstance(prepared.model_config.image, VisionTransformerConfig):
            # Convolutions run about twice as fast if a pixel's channels are adjacent.
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
        """Compute the kernel of a whitening stem from the images of the first batches."""
        tower = self.model.visual
        if not isinstance(tower, ResidualConv) or not isinstance(tower.stem, WhiteningStem):
            return
        steps = range(min(_WHITENING_BATCHES, self.prepared.plan.total_steps))
        pixels = torch.cat([self.prepared.loader[step].pixels for step in steps])
        tower.stem.whiten(self.image_encoder.normalise(pixels.to(self.device)))

    def loop(self, reporter: Reporter, first_step: int) -> None:
        """Run every step from ``first_step``, with its metrics, evaluations and checkpoints.

        The first step is reported at once, with an estimate of the time; rates count from its end, because it waits for
        the loading workers to start.

        Raises:
            DataError: a row cannot be read, or too many cannot.
            TrainingError: the loss became non-finite.
        """
        plan, recipe = self.prepared.plan, self.recipe
        started = logged = time.monotonic()
        before = self.seconds
        since_log = Tally()
        stream = batches(
            self.prepared.loader,
            first_step=first_step,
            workers=recipe.data.workers,
            pin_memory=self.device.type == "cuda",
        )
        broken_rows = BrokenRows(self.run, share=recipe.data.max_broken, train_rows=plan.train_rows, say=reporter.say)
        for batch in stream:
            step_started = time.monotonic()
            self.tally += batch.tally
            broken_rows.note(batch.broken, self.tally)
            values = self._step(batch)
            step, done = batch.step, batch.step + 1
            since_log += batch.tally
            self.seconds = before + time.monotonic() - started
            reporter.advance(step)
            last = done == plan.total_steps
            first = step == first_step
            if first or done % recipe.log_every == 0 or last:
                rate = since_log.pairs / (time.monotonic() - logged)
                shares = since_log.shares()
                reporter.metrics(step, {**values, **shares, "pairs_per_s": rate, "seconds": self.seconds})
            if first and not last:
                reporter.estimate(plan.total_steps - done, time.monotonic() - step_started)
            if last or (recipe.evaluate_every and done % recipe.evaluate_every == 0):
                self._evaluate(reporter, step)
            if done % recipe.checkpoint_every == 0 and not last:
                self._checkpoint(done)
            if first or done % recipe.log_every == 0:
                logged, since_log = time.monotonic(), Tally()

    def _step(self, batch: Batch) -> dict[str, float]:
        optim = self.recipe.optim
        rate = learning_rate(
            batch.step,
            total_steps=self.prepared.plan.total_steps,
            warmup_steps=optim.warmup_steps,
        )
        batch = batch.to(self.device)
        with self._autocast():
            images = self.model.encode_image(self.image_encoder.normalise(batch.pixels))
            texts = self.model.encode_text(batch.ids)[batch.caption]
        loss = contrastive_loss(
            images,
            texts,
            self.model.logit_scale,
            same_meaning(batch.label, batch.noun, ignore=self.recipe.objective.same_meaning == "ignore"),
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
            self.run / checkpoints.FOLDER,
            checkpoints.Checkpoint(
                step=step,
                recipe_digest=digest(self.recipe),
                data_digests=[file.digest for file in self.prepared.loader.reader.files],
                model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict(),
                seconds=self.seconds,
                tally=asdict(self.tally),
            ),
        )

    def save_weights(self) -> None:
        """Write the run's final weights."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.model.state_dict().items()}
        with replacing(self.run / WEIGHTS) as partial:
            save_file(tensors, partial)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.optim.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)
