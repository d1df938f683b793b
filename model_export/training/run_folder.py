"""The folder of a run: kept to one training at a time; what is in it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model_export.checkpoints.layouts import RECIPE
from model_export.checkpoints.training_run import WEIGHTS
from model_export.errors import TrainingError
from model_export.files import locked
from model_export.training import checkpoints
from model_export.training.recipe import Recipe, read_recipe
from model_export.training.recipe_digest import digest


@contextmanager
def kept_to_one_training(run: Path) -> Iterator[None]:
    """Make the folder, and keep other trainings out of it within this block; the lock of a killed one is gone.

    Raises:
        TrainingError: another training writes to it.
    """
    run.mkdir(parents=True, exist_ok=True)
    refusal = f"{run}: another training writes to this folder; wait for its end, or name another folder with --out"
    with locked(run, TrainingError(refusal)):
        yield


def what_is_kept(run: Path, recipe_path: Path, recipe: Recipe) -> str:
    """Return the line for an interrupted run: the state that is kept, and the command that goes on."""
    step = checkpoints.newest_step(run / checkpoints.FOLDER)
    if step is None:
        return (
            f"interrupted before the first checkpoint (checkpoint_every = {recipe.checkpoint_every}): nothing is kept; "
            "the same command starts again"
        )
    command = f"anyclass-export train {shlex.quote(str(recipe_path))} --out {shlex.quote(str(run))} --resume"
    return f"interrupted; {step:,} steps are kept. Continue, with the same --data: {command}"


def is_finished(run: Path, recipe: Recipe) -> bool:
    """Return whether a folder holds the finished run of a recipe."""
    return (run / WEIGHTS).exists() and digest(read_recipe(run / RECIPE)) == digest(recipe)
