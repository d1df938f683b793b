"""The table of keys in docs/training.md, held to the models of a recipe; and the recipe that the page shows."""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

from model_export.training.recipe import Recipe, read_recipe
from model_export.training.recipe_errors import sections
from tests.support.places import ROOT

PAGE = (ROOT / "docs/training.md").read_text("utf-8")
ROW = re.compile(r"^\| (`[a-z_.]+`(?: \(`\w+`\))?) \| (.+?) \| (.+?) \| .+ \|$", re.MULTILINE)
KINDS = ("vit", "modified_resnet", "residual_conv")
NAMES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", Path: "path"}


def type_name(annotation: Any) -> str:
    """Return an annotation as the page writes it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        name = type_name(arguments[0])
    elif origin is Literal:
        name = ", ".join(f'`"{value}"`' for value in arguments)
    elif origin in (typing.Union, types.UnionType):
        name = " or ".join(type_name(each) for each in arguments if each is not type(None))
    elif origin is dict:
        name = f"table of {type_name(arguments[1])}"
    elif origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        name = f"list{count}: {type_name(arguments[0])}"
    else:
        name = NAMES.get(annotation, "table")
    return name


def default_of(name: str, field: FieldInfo) -> str:
    """Return a default as TOML; the key `kind` must be given, because it chooses the tower."""
    if field.is_required() or name == "kind":
        return "required"
    return "unset" if field.default is None else f"`{toml(field.default)}`"


def toml(value: Any) -> str:
    """Write a value as TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def expected_rows() -> Iterator[tuple[str, str, str]]:
    """Yield key, type and default of every key that a recipe may have."""
    for place, model in sections(Recipe):
        is_tower = bool(place) and place[-1] in KINDS
        path = place[:-1] if is_tower else place
        inside = {found[: len(place) + 1][-1] for found, _ in sections(Recipe) if len(found) > len(place)}
        for name, field in model.model_fields.items():
            if name in inside and (*place, name) != ("optim", "phases"):
                continue
            key = f"`{'.'.join((*path, name))}`" + (f" (`{place[-1]}`)" if is_tower else "")
            yield key, type_name(field.annotation), default_of(name, field)


def test_the_page_names_every_key_with_its_type_and_default() -> None:
    """A recipe can be written from the page alone; a new key, or another default, fails here."""
    assert list(expected_rows()) == ROW.findall(PAGE)


def test_the_recipe_of_the_page_is_valid(tmp_path: Path) -> None:
    """The example with a small ViT can be copied; those that fine-tune leave the model to their start."""
    example, *tuning = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.toml").write_text(example, "utf-8")
    assert 2 == len(tuning)
    for recipe in tuning:
        (tmp_path / "tuned.toml").write_text(recipe, "utf-8")
        assert not read_recipe(tmp_path / "tuned.toml").model.is_stated
    image = read_recipe(tmp_path / "mine.toml").model.image
    assert image is not None
    assert "vit" == image.kind


@pytest.mark.parametrize("word", ["fine-tune", "published CLIP", "--threads", "class_name_share = 0"])
def test_the_page_answers_the_usual_questions(word: str) -> None:
    """Words that readers search for."""
    assert word in PAGE
