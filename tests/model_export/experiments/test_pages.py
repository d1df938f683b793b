"""The pages of docs/experiments, held to the recipe and to the experiments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from model_export.experiments.catalogue import EXPERIMENTS
from model_export.experiments.recipe import ExperimentRecipe, read_experiment
from tests.model_export.test_cli import anyclass_export, error_of, in_this_process
from tests.support.places import ROOT

FOLDER = ROOT / "docs/experiments"
ROW = re.compile(r"^\| `([a-z_.]+)` \| (.+?) \| .+ \|$", re.MULTILINE)
RECIPES = ROOT / "model_export/recipes/experiments"


def keys(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, str]]:
    """Yield key and default of every key that is an experiment's own."""
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            if section.__module__ == ExperimentRecipe.__module__:
                yield from keys(section, f"{place}{name}.")
            elif place:
                yield f"{place}{name}", "`{}`"
        else:
            default = "required" if field.is_required() else f"`{json.dumps(field.default)}`"
            options = [each for each in get_args(section) if isinstance(each, str)]
            assert not options or field.default in options
            yield f"{place}{name}", default


def test_the_index_names_every_key_with_its_default() -> None:
    """A recipe can be written from the page."""
    assert list(keys(ExperimentRecipe)) == ROW.findall((FOLDER / "README.md").read_text("utf-8"))


def test_every_experiment_has_a_page_with_its_command() -> None:
    """The index links it, and help names it."""
    index, shown = (FOLDER / "README.md").read_text("utf-8"), anyclass_export("experiment", "--help").stdout
    assert set(EXPERIMENTS) == {page.stem for page in FOLDER.glob("*.md")} - {"README"}
    for name in EXPERIMENTS:
        assert f"[{name}]({name}.md)" in index
        assert f"anyclass-export experiment {name} RECIPE" in (FOLDER / f"{name}.md").read_text("utf-8")
        assert name in shown


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.name)
def test_every_committed_recipe_is_valid(path: Path) -> None:
    """It can be read, and its data files are found relative to its own folder."""
    assert all(Path(file).is_absolute() for file in read_experiment(path).data.files)


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    """An unknown experiment, and a recipe that does not exist, end with exit code 2."""
    assert "'other' is not an experiment" in error_of(in_this_process("experiment", "other", tmp_path / "x.toml"))
    assert "x.toml: cannot be read" in error_of(in_this_process("experiment", "noise", tmp_path / "x.toml"))
