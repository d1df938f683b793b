"""Checkpoints from which a run continues exactly."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, cast

import torch

from model_export.errors import TrainingError
from model_export.files import replacing

FOLDER = "checkpoints"
PATTERN = "step-*.pt"
KEEP = 2


class Checkpoint(TypedDict):
    """The state between two steps; ``step`` is the next one to run."""

    step: int
    recipe_digest: str
    model: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    seconds: float


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint so that a kill at any moment leaves either it or its predecessor whole; keep the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{checkpoint['step']:08d}.pt"
    with replacing(path) as partial:
        torch.save(dict(checkpoint), partial)
    for old in sorted(folder.glob(PATTERN))[:-KEEP]:
        old.unlink()
    return path


def latest(folder: Path) -> Checkpoint | None:
    """Load the newest checkpoint of a run, or none if there is none.

    Raises:
        TrainingError: the file cannot be read as a checkpoint. Nothing in it is executed.
    """
    paths = sorted(folder.glob(PATTERN))
    if not paths:
        return None
    try:
        loaded: Any = torch.load(paths[-1], map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        msg = f"{paths[-1]}: not a readable checkpoint; delete it to resume from the one before"
        raise TrainingError(msg) from error
    if not isinstance(loaded, dict) or set(loaded) != set(Checkpoint.__annotations__):
        msg = f"{paths[-1]}: not a checkpoint of this program"
        raise TrainingError(msg)
    return cast("Checkpoint", loaded)
