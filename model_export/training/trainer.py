"""The training loop: forward, loss, backward, step; metrics, evaluation and checkpoints in between."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from model_export.architectures.encoders import ImageEncoder, TextEncoder
from model_export.architectures.towers import TwoTowers
from model_export.checkpoints.training_run import EMA_WEIGHTS, WEIGHTS
from model_export.data.loading import Batch, batches
from model_export.data.tally import Tally
from model_export.families.clip.residual_conv import ResidualConv, WhiteningStem
from model_export.training.broken_rows import BrokenRows
from model_export.training.checkpoint_writer import CheckpointWriter
from model_export.training.checkpoints import FOLDER, Checkpoint, State
from model_export.training.ema import MovingAverage
from model_export.training.finite import FiniteWatch
from model_export.training.gradients import Gradients, check_micro_batch, check_ranks
from model_export.training.held_out_accuracy import held_out_accuracy
from model_export.training.model import Loss, build_model, channels_last, loss_of, train_mode
from model_export.training.optimizer import Optimizer, learning_rate
from model_export.training.precision import autocast, compile_towers, make_exact
from model_export.training.preparation import Prepared
from model_export.training.progress import Reporter
from model_export.training.ranks import Ranks
from model_export.training.recipe import Recipe
from model_export.training.recipe_digest import digest
from model_export.training.row_counts import RowCounts
from model_export.training.run_tensors import RunTensors, save_weights, weights_in
from model_export.training.sharding import clip_grad_norm, divide
from model_export.training.teacher import Teacher

_WHITENING_BATCHES = 8


@dataclass
class Trainer:
    """The state of a run between two steps, and the steps."""

    recipe: Recipe
    prepared: Prepared
    run: Path
    ranks: Ranks
    loss: Loss
    model: TwoTowers
    image_encoder: ImageEncoder
    text_encoder: TextEncoder
    gradients: Gradients
    scaler: torch.amp.GradScaler
    optimizer: Optimizer
    ema: MovingAverage | None
    divided: bool = False
    """Whether each rank has a part of every weight."""
    seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)
    """Of all batches of the run."""

    def __post_init__(self) -> None:
        """Watch the loss, and name the tensors."""
        self._watch = FiniteWatch(self.device)
        self._tensors = RunTensors(self.model, self.optimizer, self.ema)
        self._writer: CheckpointWriter | None = None

    @classmethod
    def start(
        cls,
        recipe: Recipe,
        prepared: Prepared,
        run: Path,
        ranks: Ranks,
        *,
        weights: Mapping[str, Tensor] | None = None,
        checkpoint: Checkpoint | None = None,
        teacher: Teacher | None = None,
    ) -> Trainer:
        """Build a model, its encoders and its optimiser, and restore their state.

        Args:
            recipe: of the run.
            prepared: its data, and its model but for the weights.
            run: the folder.
            ranks: that train together.
            weights: to begin with; by default new ones, from the recipe's seed.
            checkpoint: to go on from, in place of weights.
            teacher: to learn from.

        Raises:
            RecipeError: the recipe's loss does not fit the model, or its batch norms would see a part of the batch.
            TrainingError: the checkpoint is of another model.
        """
        device = ranks.device
        make_exact(recipe.seed, device)
        blueprint, optim, again = prepared.blueprint, recipe.optim, recipe.model.checkpoint_blocks
        loss = loss_of(recipe, blueprint, weights_in(checkpoint) if checkpoint else weights or ())
        model = build_model(
            blueprint, loss, weights, frozen=optim.freeze, checkpoint_blocks=again, compiled=optim.compile
        )
        divided = optim.shard and ranks.size > 1
        if not divided:
            model.to(device)
        check_micro_batch(recipe, model)
        check_ranks(model, ranks)
        in_channels_last = channels_last(model)
        if checkpoint is None:
            ranks.spread(model)
        ema = MovingAverage(model, optim.ema) if optim.ema is not None else None
        if divided:
            divide(model, ranks)
            if ema is not None:
                divide(ema.model, ranks)
                ema.follow(model)
        image_encoder = ImageEncoder(model, blueprint.image.mean, blueprint.image.std).to(device)
        image_encoder.channels_last = in_channels_last
        scaler = torch.amp.GradScaler(device.type, enabled=optim.precision == "fp16")
        if optim.compile:
            compile_towers(model)
        trainer = cls(
            recipe,
            prepared,
            run,
            ranks,
            loss,
            model,
            image_encoder,
            TextEncoder(model).to(device),
            Gradients(
                model,
                image_encoder,
                loss,
                label_smoothing=optim.label_smoothing,
                chunk=recipe.objective.chunk,
                ignore_same_meaning=recipe.objective.same_meaning == "ignore",
                frozen=optim.freeze,
                micro_batch=optim.micro_batch,
                autocast=partial(autocast, optim.precision, device),
                scale=scaler.scale,
                teacher=teacher,
                distillation=0.0 if recipe.distillation is None else recipe.distillation.weight,
                ranks=ranks,
                divided=divided,
            ),
            scaler,
            Optimizer(
                model,
                lr=optim.lr,
                weight_decay=optim.weight_decay,
                betas=optim.betas,
                eps=optim.eps,
                muon_lr=optim.muon_lr,
            ),
            ema,
            divided,
        )
        if checkpoint is not None:
            trainer._restore(checkpoint)
        return trainer

    @property
    def device(self) -> torch.device:
        """Return the device of the model."""
        return self.ranks.device

    def _restore(self, checkpoint: Checkpoint) -> None:
        self._tensors.restore(checkpoint)
        self.seconds = checkpoint.state.seconds
        self.tally = Tally(**checkpoint.state.tally)
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(dict(checkpoint.state.scaler))

    def whiten(self) -> None:
        """Compute the kernel of a whitening stem from the images of the first batches."""
        tower = self.model.visual
        if not isinstance(tower, ResidualConv) or not isinstance(tower.stem, WhiteningStem):
            return
        steps = range(min(_WHITENING_BATCHES, self.prepared.plan.total_steps))
        pixels = torch.cat([self.prepared.loader[step].pixels for step in steps])
        tower.stem.whiten(self.image_encoder.normalise(pixels.to(self.device)))
        if self.ema is not None:
            self.ema.restart()

    def loop(self, reporter: Reporter, first_step: int) -> None:
        """Run every step from ``first_step``, with its metrics, evaluations and checkpoints.

        The first step is reported at once, with an estimate of the time; rates count from its end, because it waits for
        the loading workers to start.

        Raises:
            DataError: a row cannot be read, or too many cannot.
            TrainingError: the loss became non-finite.
        """
        with closing(CheckpointWriter(self.run / FOLDER, self.ranks, reporter.say)) as self._writer:
            self._loop(reporter, first_step, self._writer)

    def _loop(self, reporter: Reporter, first_step: int, writer: CheckpointWriter) -> None:
        plan, recipe = self.prepared.plan, self.recipe
        started = logged = time.monotonic()
        before = self.seconds
        stream = batches(
            self.prepared.loader.part(*self.ranks.part(plan.batch_size)),
            first_step=first_step,
            workers=recipe.data.workers,
            pin_memory=self.device.type == "cuda",
        )
        broken_rows = BrokenRows(self.run, share=recipe.data.max_broken, train_rows=plan.train_rows, say=reporter.say)
        counts = RowCounts(self.ranks, self.tally, broken_rows)
        for batch in stream:
            step_started = time.monotonic()
            step, done = batch.step, batch.step + 1
            last = done == plan.total_steps
            first = step == first_step
            logs = first or done % recipe.log_every == 0 or last
            evaluates = last or (recipe.evaluate_every and done % recipe.evaluate_every == 0)
            saves = done % recipe.checkpoint_every == 0 and not last
            counts.add(batch, exchange=bool(logs or evaluates or saves))
            self.tally = counts.of_run
            values = self._step(batch)
            self.seconds = before + time.monotonic() - started
            reporter.advance(step)
            if logs or evaluates or saves:
                self._watch.check()
            if logs:
                read = {name: float(value) for name, value in values.items()}
                rate = counts.since_log.pairs / (time.monotonic() - logged)
                shares = counts.since_log.shares()
                reporter.metrics(step, {**read, **shares, "pairs_per_s": rate, "seconds": self.seconds})
            if first and not last:
                reporter.estimate(plan.total_steps - done, time.monotonic() - step_started)
            writer.report()
            # The other ranks wait in the next step's exchange; of a divided model each has a part in every pass.
            if evaluates and (self.ranks.leads or self.divided):
                self._evaluate(reporter, step)
            if saves:
                writer.begin(self._state(done), self._tensors.to_save())
            if first or done % recipe.log_every == 0:
                logged = time.monotonic()
                counts.logged()

    def _step(self, batch: Batch) -> dict[str, Tensor | float]:
        """Take a step; return values that are still on the device."""
        optim, model = self.recipe.optim, self.model
        rate = learning_rate(
            batch.step,
            total_steps=self.prepared.plan.total_steps,
            warmup_steps=optim.warmup_steps,
        )
        batch = batch.to(self.device)
        model.zero_grad(set_to_none=True)
        loss = self.gradients(batch)
        self._watch.note(batch.step, loss)
        values: dict[str, Tensor | float] = {
            "loss": loss,
            "lr": rate * optim.lr,
            "logit_scale": model.logit_scale.detach().exp(),
        }
        self.scaler.unscale_(self.optimizer)  # type: ignore[arg-type]
        if optim.clip_grad_norm is not None:
            values["grad_norm"] = clip_grad_norm(model.parameters(), optim.clip_grad_norm)
        if self._writer is not None:
            self._writer.copied()
        self.scaler.step(self.optimizer, rate)  # type: ignore[arg-type]
        self.scaler.update()
        if self.loss == "softmax":
            model.clip_logit_scale()
        if self.ema is not None:
            self.ema.update(batch.step)
        return values

    def _evaluate(self, reporter: Reporter, step: int) -> None:
        encoders = {"": (self.image_encoder, self.text_encoder)}
        if self.ema is not None:
            image, average = self.prepared.blueprint.image, self.ema.model
            averaged = ImageEncoder(average, image.mean, image.std).to(self.device)
            encoders["ema_"] = (averaged.eval(), TextEncoder(average).eval())
        for values, line in held_out_accuracy(self.prepared, encoders, self.device):
            reporter.metrics(step, values)
            if line:
                reporter.say(f"step {step + 1}: {line}")
        train_mode(self.model, self.recipe.optim.freeze)

    def _state(self, step: int) -> State:
        teacher = self.gradients.teacher
        return State(
            step=step,
            recipe_digest=digest(self.recipe),
            data_digests=tuple(file.digest for file in self.prepared.loader.reader.files),
            seconds=self.seconds,
            tally=asdict(self.tally),
            scaler=self.scaler.state_dict(),
            teacher_digest=teacher.digest if teacher else None,
        )

    def save_weights(self) -> None:
        """Write the run's final weights, the averaged ones first; on all ranks, of which the first writes."""
        if self.ema is not None:
            save_weights(self.ema.state_dict(), self.run / EMA_WEIGHTS, self.ranks)
        save_weights(self.model.state_dict(), self.run / WEIGHTS, self.ranks)
