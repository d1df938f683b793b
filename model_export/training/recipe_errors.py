"""Messages for an invalid recipe. A key that is unknown at its place comes with those that are known there."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from model_export.errors import problems

_CLOSE = 0.65
"""Likeness from which a known key is offered: `patch` is `patch_size`, `depth` is not `width`."""


def recipe_problems(exc: ValidationError, recipe: type[BaseModel]) -> str:
    """Join pydantic's findings into one line, as `problems` does, and name the known keys beside an unknown one."""
    listed: set[str] = set()

    def explain(found: ErrorDetails) -> str | None:
        return _unknown_key(found["loc"], recipe, listed) if found["type"] == "extra_forbidden" else None

    return problems(exc, root="recipe", explain=explain)


def sections(model: type[BaseModel], place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:
    """Yield the place and the model of every section of a recipe, such as ``("model", "image", "vit")``."""
    yield place, model
    for name, field in model.model_fields.items():
        for tag, section in _models_of(field.annotation):
            yield from sections(section, (*place, name, *tag))


def _unknown_key(loc: Sequence[int | str], recipe: type[BaseModel], listed: set[str]) -> str:
    """Return the message for an unknown key; the keys of a place are listed once, and then noted in `listed`."""
    *place, key = (str(part) for part in loc if isinstance(part, str))
    known = next(
        (tuple(section.model_fields) for found, section in sections(recipe) if found == tuple(place)),
        (),
    )
    close = difflib.get_close_matches(key, known, n=1, cutoff=_CLOSE)
    meant = f"; did you mean {close[0]}?" if close else ""
    where = ".".join(place) or "the top level"
    keys = "" if where in listed else f" ({where} has {', '.join(known)})"
    listed.add(where)
    return f"is not a key of a recipe{meant}{keys}"


def _models_of(annotation: Any) -> Iterator[tuple[tuple[str, ...], type[BaseModel]]]:  # noqa: ANN401 - any annotation
    """Yield the models inside an annotation; those of a union come with the tag that chooses them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield (), annotation
        return
    members = get_args(annotation)
    if get_origin(annotation) is Annotated:
        members = members[:1]
    tagged = [each for each in members if isinstance(each, type) and issubclass(each, BaseModel)]
    for member in members:
        if len(tagged) > 1 and member in tagged:
            yield (str(member.model_fields["kind"].default),), member
        else:
            yield from _models_of(member)
