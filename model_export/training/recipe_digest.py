"""Hash a recipe: a run goes on with its own only."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from model_export.training.recipe import Recipe


def digest(recipe: Recipe) -> str:
    """Hash the part of a recipe that decides the weights.

    That is everything but folders, logging, the number of workers, the share of broken rows that ends the run, and
    what is kept in memory.
    """
    content: dict[str, Any] = recipe.model_dump(mode="json")
    content["data"]["files"] = [Path(file).name for file in content["data"]["files"]]
    for key in ("log_every", "checkpoint_every", "evaluate_every", "licence"):
        del content[key]
    for key in ("workers", "max_broken"):
        del content["data"][key]
    del content["model"]["checkpoint_blocks"]
    del content["optim"]["shard"]
    if recipe.model.from_start == "both":
        # Runs from before this key go on.
        del content["model"]["from_start"]
    if recipe.distillation is not None:
        content["distillation"]["teacher"] = Path(recipe.distillation.teacher).name
    return hashlib.sha256(repr(content).encode()).hexdigest()
