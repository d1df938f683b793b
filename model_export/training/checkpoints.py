"""Save and load the checkpoints from which a run continues exactly."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch

from model_export.errors import TrainingError
from model_export.files import replacing

FOLDER = "checkpoints"
PATTERN = "step-*.pt"
KEEP = 2


class Checkpoint(TypedDict):
    """State of a run between two steps; ``step`` is the next one to run."""

    step: int
    recipe_digest: str
    data_digests: Sequence[str]
    model: Mapping[str, Any]
    optimizer: Mapping[str, Any]
    seconds: float
    tally: Mapping[str, int]
    ema: NotRequired[Mapping[str, Any]]
    scaler: NotRequired[Mapping[str, Any]]
    teacher_digest: NotRequired[str]


def save(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint, and keep the last two. A kill at any moment leaves this one or its predecessor whole."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{checkpoint['step']:08d}.pt"
    with replacing(path) as partial:
        torch.save(dict(checkpoint), partial)
    for old in sorted(folder.glob(PATTERN))[:-KEEP]:
        old.unlink()
    return path


def latest_step(folder: Path) -> int | None:
    """Return the step of the newest checkpoint by its name; None if a run has none."""
    return max((int(path.stem.removeprefix("step-")) for path in folder.glob(PATTERN)), default=None)


def latest(folder: Path) -> Checkpoint | None:
    """Load the newest checkpoint of a run; return None if it has none.

    Raises:
        TrainingError: the file is not a readable checkpoint. Its content is never executed.
    """
    paths = sorted(folder.glob(PATTERN))
    if not paths:
        return None
    try:
        loaded: Any = torch.load(paths[-1], map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        msg = f"{paths[-1]}: is not a readable checkpoint; delete it to resume from the one before"
        raise TrainingError(msg) from error
    if not isinstance(loaded, dict) or not Checkpoint.__required_keys__ <= set(loaded) <= set(
        Checkpoint.__annotations__
    ):
        msg = f"{paths[-1]}: is not a checkpoint of anyclass-export; delete it, or name another folder with --out"
        raise TrainingError(msg)
    return cast("Checkpoint", loaded)
