"""Run a training from its recipe to its weights."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
import torch
from rich.console import Console
from torch import nn

from model_export.checkpoints.layouts import RECIPE
from model_export.checkpoints.model_source import ModelSource, SourceOptions
from model_export.checkpoints.training_run import CONFIG, WEIGHTS
from model_export.data.curated import curated_digests
from model_export.data.reader import PairReader
from model_export.errors import RecipeError, TrainingError
from model_export.families.tokenizers import TOKENIZER
from model_export.files import write_json
from model_export.training import checkpoints
from model_export.training.blueprint import Blueprint, blueprint_of_recipe, blueprint_of_run, blueprint_with
from model_export.training.joining import joined
from model_export.training.precision import check_device, chosen, slow_precision
from model_export.training.preparation import Prepared, prepare
from model_export.training.progress import Reporter, Silence
from model_export.training.ranks import Ranks
from model_export.training.recipe import Recipe, read_recipe
from model_export.training.recipe_digest import digest
from model_export.training.run_folder import is_finished, kept_to_one_training, what_is_kept
from model_export.training.starts import blueprint_of_start, open_start, weights_of_start
from model_export.training.teacher import Teacher, open_teacher
from model_export.training.trainer import Trainer


def train(
    recipe_path: Path,
    *,
    out: Path | None = None,
    data: Path | None = None,
    start_from: str | Path | None = None,
    start_options: SourceOptions | None = None,
    resume: bool = False,
    auto_resume: bool = False,
    device: str = "auto",
    threads: int | None = None,
    console: Console | None = None,
) -> Path:
    """Train by a recipe, and write a training run; in each of the processes that torchrun started, its part.

    The run's folder holds ``config.json``, ``tokenizer.json``, ``model.safetensors``, ``recipe.toml``,
    ``metrics.jsonl``, TensorBoard's files and checkpoints.

    Args:
        recipe_path: a TOML file.
        out: the run's folder; by default ``runs/NAME`` in the current folder.
        data: the folder of the recipe's data files; the recipe's own by default.
        start_from: a finished run, or any checkpoint that `export` reads, or a hub id. The run starts with its weights,
            and keeps its tokenizer and preprocessing; by default all are new.
        start_options: facts that the files of ``start_from`` lack.
        resume: continue a stopped run from its newest checkpoint. On the CPU, the final weights are bit for bit
            those of an uninterrupted run of as many processes.
        auto_resume: resume if the run has a checkpoint, start it if not, and leave a finished run as it is. After a
            restart by torchrun this holds without being asked for.
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA if available.
        threads: of torch on the CPU; one for each core by default. Exact resumption needs the same number.
        console: shows the progress.

    Returns:
        The run's folder.

    Raises:
        RecipeError: the recipe is wrong, or does not fit ``start_from``.
        SourceError: ``start_from`` cannot be fetched or read.
        DataError: a file, column or row cannot be read.
        TrainingError: the folder is in use, no run exists to resume, or the loss became non-finite.
        LostRankError: another process ended without a message.
        OtherRankError: another process failed, and raised the reason.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    with joined(device) as ranks, ExitStack() as held:
        console = (console or Console()) if ranks.leads else Console(quiet=True)
        recipe = read_recipe(recipe_path, data=data)
        ranks.part(recipe.optim.batch_size)  # refuses a batch that cannot be divided
        check_device(recipe, ranks.device)
        run = out or Path("runs") / recipe.name
        if ranks.restarts:
            console.print(f"note: started again after a failure (restart {ranks.restarts})", highlight=False)
        if auto_resume or ranks.restarts:
            if is_finished(run, recipe):
                console.print(f"{run}: is finished already", highlight=False, markup=False, soft_wrap=True)
                return run
            resume = checkpoints.newest_step(run / checkpoints.FOLDER) is not None
        return _train(
            recipe_path, recipe, run, start_from, start_options, resume=resume, ranks=ranks, console=console, held=held
        )


def _train(
    recipe_path: Path,
    recipe: Recipe,
    run: Path,
    start_from: str | Path | None,
    start_options: SourceOptions | None,
    *,
    resume: bool,
    ranks: Ranks,
    console: Console,
    held: ExitStack,
) -> Path:
    data = curated_digests(recipe.data.files)
    checkpoint = _open_run(run, recipe, resume=resume, ranks=ranks, console=console)
    first_step = checkpoint.state.step if checkpoint else 0
    with ranks.leader_first():  # which may download it
        starts = start_from is not None and not checkpoint
        start = open_start(str(start_from), start_options, recipe, console) if starts else None
    if not start and not checkpoint:
        _check_new(recipe)

    console.print(f"[bold]{recipe.name}[/]: reading {len(recipe.data.files)} files of pairs", highlight=False)
    with ranks.leader_first():
        teacher = open_teacher(recipe, ranks.device, console)
    prepared = _prepare(recipe, _blueprint(recipe, run if checkpoint else None, start, teacher), ranks)
    if teacher:
        teacher.check_fits(prepared.blueprint, recipe)
    if checkpoint:
        _check_data(checkpoint, prepared.loader.reader)
        _check_teacher(checkpoint, teacher)
    ranks.check_same(_facts(recipe, prepared, teacher, first_step))
    weights = weights_of_start(recipe, start) if start else None
    trainer = Trainer.start(recipe, prepared, run, ranks, weights=weights, checkpoint=checkpoint, teacher=teacher)
    if ranks.leads:
        held.enter_context(kept_to_one_training(run))
    if not checkpoint and ranks.leads:
        (run / TOKENIZER).write_bytes(prepared.blueprint.tokenizer)
        shutil.copyfile(recipe_path, run / RECIPE)
        write_json(run / CONFIG, _config(recipe, prepared.blueprint, start, data))
    if not checkpoint and not start:
        trainer.whiten()
    del start, weights
    image, text = (_millions(tower) for tower in (trainer.model.visual, trainer.model.text))
    console.print(
        f"{prepared.train_rows:,} pairs to train, {prepared.validation_rows:,} held out · image tower {image}, "
        f"text tower {text} · {prepared.plan.total_steps:,} steps of {recipe.optim.batch_size} on {ranks.device.type}"
        + (f", {ranks.size} processes" if ranks.size > 1 else "")
        + (f", from step {first_step:,}" if first_step else "")
        + f", in {chosen(recipe.optim.precision, ranks.device)}",
        highlight=False,
        soft_wrap=True,
    )
    slow = slow_precision(recipe, ranks.device)
    for note in (*prepared.notes, *([slow] if slow else [])):
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    total_steps = prepared.plan.total_steps
    opened = Reporter(run, console, total_steps=total_steps, first_step=first_step) if ranks.leads else Silence()
    try:
        with closing(opened) as reporter:
            trainer.loop(reporter, first_step)
    except KeyboardInterrupt:
        console.print(what_is_kept(run, recipe_path, recipe), highlight=False, markup=False, soft_wrap=True)
        raise
    trainer.save_weights()
    console.print(f"weights: {run / WEIGHTS}  ({trainer.seconds / 60:.1f} minutes of training)", highlight=False)
    return run


def _prepare(recipe: Recipe, blueprint: Blueprint | None, ranks: Ranks) -> Prepared:
    """Prepare the data on the first rank, which may index tars and train a tokenizer, and then on the others."""
    first = prepare(recipe, blueprint) if ranks.leads else None
    tokenizer = ranks.of_leader(first.blueprint.tokenizer if first else b"")
    return first or prepare(
        recipe, blueprint or blueprint_of_recipe(recipe, tokenizers.Tokenizer.from_buffer(tokenizer))
    )


def _facts(recipe: Recipe, prepared: Prepared, teacher: Teacher | None, first_step: int) -> dict[str, object]:
    """Return the facts that all ranks must know alike, by their names in an error."""
    digests = {f"digest of {file.name}": file.digest for file in prepared.loader.reader.files}
    if teacher is not None:
        digests["teacher"] = teacher.digest
    # The digest of a recipe does not cover these, and ranks exchange at such steps.
    together = {key: getattr(recipe, key) for key in ("log_every", "evaluate_every", "checkpoint_every")}
    return {
        "recipe": digest(recipe),
        **together,
        "optim.shard": recipe.optim.shard,
        **digests,
        "first step (--out must name one folder for all)": first_step,
    }


def _open_run(
    run: Path, recipe: Recipe, *, resume: bool, ranks: Ranks, console: Console
) -> checkpoints.Checkpoint | None:
    if (run / WEIGHTS).exists():
        msg = f"{run}: holds a finished run; name another folder with --out"
        raise TrainingError(msg)
    folder = run / checkpoints.FOLDER
    has_checkpoint = checkpoints.newest_step(folder) is not None
    if resume and not has_checkpoint:
        msg = f"{run}: has no checkpoint to resume from; start the run without --resume"
        raise TrainingError(msg)
    if not resume and has_checkpoint:
        msg = f"{run}: holds an unfinished run; continue it with --resume, or name another folder with --out"
        raise TrainingError(msg)
    if not resume:
        return None
    checkpoint = checkpoints.open_newest(folder, ranks, partial(console.print, highlight=False, soft_wrap=True))
    if checkpoint.state.recipe_digest != digest(recipe):
        msg = f"{run}: was started from another recipe; resume with {run / RECIPE}"
        raise TrainingError(msg)
    return checkpoint


def _check_data(checkpoint: checkpoints.Checkpoint, reader: PairReader) -> None:
    """Refuse to go on with other data than the checkpoint's: its batches would be other ones."""
    before = checkpoint.state.data_digests
    if len(before) != len(reader.files):
        msg = f"the run was started on {len(before)} data files, not {len(reader.files)}; resume with the same --data"
        raise TrainingError(msg)
    for file, digest_before in zip(reader.files, before, strict=True):
        if file.digest != digest_before:
            msg = (
                f"{file.name}: is not the file that the run was started on, under the same name; put that file back, "
                "or begin a new run in another folder with --out"
            )
            raise TrainingError(msg)


def _check_teacher(checkpoint: checkpoints.Checkpoint, teacher: Teacher | None) -> None:
    """Refuse to go on with another teacher under the same name."""
    if teacher is not None and checkpoint.state.teacher_digest != teacher.digest:
        msg = (
            f"{teacher.name}: is not the teacher that the run was started with, under the same name; put that one "
            "back, or begin a new run in another folder with --out"
        )
        raise TrainingError(msg)


def _blueprint(
    recipe: Recipe, resumed: Path | None, start: ModelSource | None, teacher: Teacher | None
) -> Blueprint | None:
    """Return the blueprint of a run that is resumed, of a start, or of a student; None for any other new model."""
    if resumed is not None:
        return blueprint_of_run(resumed)
    if start is not None and (given := blueprint_of_start(recipe, start)):
        return given
    return None if teacher is None else blueprint_with(recipe, teacher.tokenizer, teacher.text)


def _check_new(recipe: Recipe) -> None:
    """Check that a recipe describes a model without a start."""
    if not recipe.model.is_stated:
        msg = "the recipe states no model: add [model.image], or [model] with a size; or start from a model with --from"
        raise RecipeError(msg)
    if recipe.model.from_start == "image":
        msg = 'model.from_start = "image" takes an image tower: add --from, or leave the key out'
        raise RecipeError(msg)
    if recipe.optim.freeze:
        tower = recipe.optim.freeze[0]
        msg = f"optim.freeze keeps the {tower} tower as it is, which is random: add --from, or leave it out"
        raise RecipeError(msg)


def _config(recipe: Recipe, blueprint: Blueprint, start: ModelSource | None, data: list[str]) -> dict[str, Any]:
    source, licence = f"trained from {recipe.name}", recipe.licence
    if start is not None:
        known = start.provenance
        source += f", beginning with the weights sha256:{known.source_sha256}"
        if start.aliases:
            source += f" of {known.source}"
        licence = licence or known.licence
    return {
        "name": recipe.name,
        "family": blueprint.family.name,
        "model": blueprint.config.model_dump(mode="json"),
        "image": blueprint.image.model_dump(mode="json"),
        "text": blueprint.text.model_dump(mode="json"),
        "templates": {name: list(templates) for name, templates in recipe.captions.template_sets.items()},
        "provenance": {"source": source, "licence": licence, "data": data or None},
    }


def _millions(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f}M"
