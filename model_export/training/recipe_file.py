"""Reads a recipe from its TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from model_export.data.locations import is_url
from model_export.errors import RecipeError
from model_export.training.recipe_errors import recipe_problems

RecipeT = TypeVar("RecipeT", bound=BaseModel)


def read_recipe_file(path: Path, recipe: type[RecipeT]) -> RecipeT:
    """Read and check a recipe of a kind; its paths stay as they are written.

    Raises:
        RecipeError: the file cannot be read, is not TOML, or has unknown keys or invalid values.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: is not valid TOML: {error}") from error
    try:
        return recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{path}: {recipe_problems(error, recipe)}") from error


def located(file: str, base: Path) -> str:
    """Return the absolute path of a data file below a folder; a URL stays as it is."""
    return file if is_url(file) else str((base / file).resolve())
