"""Run a training from its recipe to its weights."""

from __future__ import annotations

import shlex
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from model_export.checkpoints.layouts import RECIPE
from model_export.checkpoints.training_run import CONFIG, WEIGHTS
from model_export.data.reader import PairReader
from model_export.data.tally import Tally
from model_export.errors import TrainingError
from model_export.families.clip.config import ClipConfig
from model_export.families.clip.model import ClipModel
from model_export.families.tokenizers import TOKENIZER
from model_export.files import write_json
from model_export.training import checkpoints
from model_export.training.preparation import prepare
from model_export.training.progress import Reporter
from model_export.training.recipe import Recipe, digest, read_recipe
from model_export.training.trainer import Trainer
from service.model.manifest import FileEntry

_ONLY_RUNS = "A published CLIP cannot be trained further here, only a run of anyclass-export train"


def train(
    recipe_path: Path,
    *,
    out: Path | None = None,
    data: Path | None = None,
    start_from: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    threads: int | None = None,
    console: Console | None = None,
) -> Path:
    """Train by a recipe, and write a training run.

    The run's folder holds ``config.json``, ``tokenizer.json``, ``model.safetensors``, ``recipe.toml``,
    ``metrics.jsonl``, TensorBoard's files and checkpoints.

    Args:
        recipe_path: a TOML file.
        out: the run's folder; by default ``runs/NAME`` in the current folder.
        data: the folder of the recipe's data files; the recipe's own by default.
        start_from: a finished run of the same model, whose weights and tokenizer this run starts with; by default
            both are new.
        resume: continue a stopped run from its newest checkpoint. On the CPU, the final weights are bit for bit
            those of an uninterrupted run.
        device: ``cpu``, ``cuda``, or ``auto`` for CUDA if available.
        threads: of torch on the CPU; one for each core by default. Exact resumption needs the same number.
        console: shows the progress.

    Returns:
        The run's folder.

    Raises:
        RecipeError: the recipe is wrong.
        DataError: a file, column or row cannot be read.
        TrainingError: the folder is in use, no run exists to resume or to start from, or the loss became non-finite.
    """
    console = console or Console()
    recipe = read_recipe(recipe_path, data=data)
    if threads is not None:
        torch.set_num_threads(threads)
    run = out or Path("runs") / recipe.name
    place = _device(device)
    checkpoint = _open_run(run, recipe, resume=resume)
    first_step = checkpoint["step"] if checkpoint else 0

    console.print(f"[bold]{recipe.name}[/]: reading {len(recipe.data.files)} files of pairs", highlight=False)
    if start_from and not checkpoint:
        _take_tokenizer(start_from, run)
    prepared = prepare(recipe, run, own_tokenizer=first_step == 0 and start_from is None)
    if checkpoint:
        _check_data(checkpoint, prepared.loader.reader)
    if first_step == 0:
        shutil.copyfile(recipe_path, run / RECIPE)
        write_json(run / CONFIG, _config(recipe, prepared.model_config, start_from))
    trainer = Trainer.start(recipe, prepared, run, place)
    if checkpoint:
        trainer.model.load_state_dict(checkpoint["model"])
        trainer.optimizer.load_state_dict(dict(checkpoint["optimizer"]))
        trainer.seconds = checkpoint["seconds"]
        trainer.tally = Tally(**checkpoint["tally"])
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
    for note in prepared.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    try:
        with closing(Reporter(run, console, total_steps=prepared.plan.total_steps, first_step=first_step)) as reporter:
            trainer.loop(reporter, first_step)
    except KeyboardInterrupt:
        console.print(_kept(run, recipe_path, recipe), highlight=False, markup=False, soft_wrap=True)
        raise
    trainer.save_weights()
    console.print(f"weights: {run / WEIGHTS}  ({trainer.seconds / 60:.1f} minutes of training)", highlight=False)
    return run


def _kept(run: Path, recipe_path: Path, recipe: Recipe) -> str:
    """Return the line for an interrupted run: the state that is kept, and the command that goes on."""
    step = checkpoints.latest_step(run / checkpoints.FOLDER)
    if step is None:
        return (
            f"interrupted before the first checkpoint (checkpoint_every = {recipe.checkpoint_every}): nothing is kept; "
            "the same command starts again"
        )
    command = f"anyclass-export train {shlex.quote(str(recipe_path))} --out {shlex.quote(str(run))} --resume"
    return f"interrupted; {step:,} steps are kept. Continue, with the same --data: {command}"


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        msg = "torch finds no GPU for --device cuda; install a CUDA build of torch, or use --device cpu"
        raise TrainingError(msg)
    if name not in ("auto", "cpu", "cuda"):
        msg = f"unknown device {name!r}; use cpu, cuda or auto"
        raise TrainingError(msg)
    return torch.device("cuda" if name != "cpu" and available else "cpu")


def _open_run(run: Path, recipe: Recipe, *, resume: bool) -> checkpoints.Checkpoint | None:
    if (run / WEIGHTS).exists():
        msg = f"{run}: holds a finished run; name another folder with --out"
        raise TrainingError(msg)
    checkpoint = checkpoints.latest(run / checkpoints.FOLDER)
    if resume and checkpoint is None:
        msg = f"{run}: has no checkpoint to resume from; start the run without --resume"
        raise TrainingError(msg)
    if not resume and checkpoint is not None:
        msg = f"{run}: holds an unfinished run; continue it with --resume, or name another folder with --out"
        raise TrainingError(msg)
    if checkpoint and checkpoint["recipe_digest"] != digest(recipe):
        msg = f"{run}: was started from another recipe; resume with {run / RECIPE}"
        raise TrainingError(msg)
    run.mkdir(parents=True, exist_ok=True)
    return checkpoint


def _check_data(checkpoint: checkpoints.Checkpoint, reader: PairReader) -> None:
    """Refuse to go on with other data than the checkpoint's: its batches would be other ones."""
    before = checkpoint["data_digests"]
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


def _take_tokenizer(source: Path, run: Path) -> None:
    if not (source / WEIGHTS).is_file() or not (source / TOKENIZER).is_file():
        msg = f"{source}: is not a finished run to start from; it must hold {WEIGHTS} and {TOKENIZER}. {_ONLY_RUNS}"
        raise TrainingError(msg)
    shutil.copyfile(source / TOKENIZER, run / TOKENIZER)


def _take_weights(source: Path, model: ClipModel) -> None:
    try:
        model.load_state_dict(load_file(source / WEIGHTS))
    except (SafetensorError, OSError, RuntimeError) as error:
        remedy = f"use the [model] of {source / RECIPE}" if (source / RECIPE).is_file() else _ONLY_RUNS
        msg = f"{source / WEIGHTS}: does not fit the recipe's model; {remedy}"
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
