"""The table of keys in docs/curation.md, held to the models of a recipe; and the recipe that the page shows."""

import re
import typing
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from model_export.curation.pieces import InputColumns
from model_export.curation.recipe import Recipe, read_recipe
from tests.model_export.training.test_recipe_page import default_of, toml, type_name
from tests.support.places import ROOT

PAGE = (ROOT / "docs/curation.md").read_text("utf-8")
ROW = re.compile(r"^\| (`[a-z_]+\.[a-z_.]+`) \| (.+?) \| (.+?) \| (?:.+ )?\|$", re.MULTILINE)


def expected_rows(model: type[BaseModel] = Recipe, place: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield key, type and default of every key that a recipe may have."""
    for name, field in model.model_fields.items():
        kinds = [each for each in (field.annotation, *get_args(field.annotation)) if isinstance(each, type)]
        if InputColumns in kinds:
            for column, default in InputColumns()._asdict().items():
                yield f"`{place}{name}.{column}`", "string", f"`{toml(default)}`"
        elif inner := [each for each in kinds if issubclass(each, BaseModel)]:
            yield from expected_rows(inner[0], f"{place}{name}.")
        else:
            kind: Any = str if kinds and issubclass(kinds[0], StrEnum) else field.annotation
            yield f"`{place}{name}`", type_name(kind), default_of(name, field)


def test_the_page_names_every_key_with_its_type_and_default() -> None:
    """A recipe can be written from the page alone; a new key, or another default, fails here."""
    assert typing.cast("list[tuple[str, str, str]]", ROW.findall(PAGE)) == list(expected_rows())


def test_the_recipe_of_the_page_is_valid(tmp_path: Path) -> None:
    """The example can be copied, and names every stage."""
    example = re.search(r"^with `recipe.toml`:\n\n((?:    .*\n|\n)+)", PAGE, re.MULTILINE)
    assert example
    (tmp_path / "mine.toml").write_text(re.sub("^    ", "", example[1], flags=re.MULTILINE), "utf-8")
    found = read_recipe(tmp_path / "mine.toml")
    assert all(getattr(found, name) for name in Recipe.model_fields)
