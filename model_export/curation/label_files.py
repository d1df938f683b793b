"""Read the labels of `anyclass-export score`: a label a line, or a label set as the service takes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_export.errors import DataError
from model_export.evaluation.templates import choose_templates
from service.errors import InvalidLabels, InvalidTemplates, TooManyLabels
from service.model.manifest import DEFAULT_TEMPLATES
from service.model.prompts import normalise_label, normalise_labels, validate_templates

_MOST_LABELS: Final = 100_000
_LABEL_CHARS: Final = 1_000
_MOST_TEMPLATES: Final = 1_000
_TEMPLATE_CHARS: Final = 1_000


class LabelList(NamedTuple):
    """Labels, normalised, and the templates of their prompts."""

    names: tuple[str, ...]
    templates: tuple[str, ...]


class _LabelSet(BaseModel):
    """The body of ``PUT /v1/label-sets/{name}``; what the service's answer has besides is left out."""

    model_config = ConfigDict(extra="ignore", strict=True)

    labels: Annotated[list[str], Field(min_length=1)]
    templates: str | list[str] = DEFAULT_TEMPLATES


def read_labels(path: Path, templates: str | None, own: Mapping[str, Sequence[str]]) -> LabelList:
    """Read a file with a label on each line; ``#`` begins a comment.

    Args:
        path: of the file.
        templates: name of a set, or a JSON file; the bundle's default if None.
        own: the bundle's sets.

    Raises:
        DataError: it cannot be read, holds no label or one twice, or the templates cannot be used.
    """
    lines = [line.partition("#")[0].strip() for line in _text_of(path, "one label a line").splitlines()]
    first: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        label = normalise_label(line)
        if not label:
            continue
        if label in first:
            raise DataError(f"{path}: lines {first[label]} and {number} hold the same label {label!r}; remove one")
        first[label] = number
    if not first:
        raise DataError(f"{path}: holds no label; write one a line")
    return LabelList(_checked(list(first), path), _template_set(templates or DEFAULT_TEMPLATES, own))


def read_label_set(path: Path, own: Mapping[str, Sequence[str]]) -> LabelList:
    """Read a label set: JSON with ``labels`` and ``templates``, as the service takes and answers it.

    Raises:
        DataError: it cannot be read, or a label or template in it cannot be used.
    """
    wanted = 'a label set: {"labels": ["cat", "dog"], "templates": "default"}'
    try:
        content = _LabelSet.model_validate(json.loads(_text_of(path, wanted)))
    except (ValueError, ValidationError, RecursionError) as error:
        raise DataError(f"{path}: is no label set; write {wanted}") from error
    names = _checked(content.labels, path)
    if isinstance(content.templates, str):
        return LabelList(names, _template_set(content.templates, own))
    try:
        given = validate_templates(content.templates, max_templates=_MOST_TEMPLATES, max_chars=_TEMPLATE_CHARS)
    except InvalidTemplates as error:
        raise DataError(f"{path}: {error.detail}") from error
    return LabelList(names, given)


def _template_set(name: str, own: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    chosen = choose_templates([name], own)
    if len(chosen) != 1:
        raise DataError(f"--templates {name}: holds {len(chosen)} sets ({', '.join(chosen)}); name one")
    return next(iter(chosen.values()))


def _checked(labels: Sequence[str], path: Path) -> tuple[str, ...]:
    try:
        return normalise_labels(labels, max_labels=_MOST_LABELS, max_chars=_LABEL_CHARS)
    except (InvalidLabels, TooManyLabels) as error:
        raise DataError(f"{path}: {error.detail}") from error


def _text_of(path: Path, wanted: str) -> str:
    try:
        return path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: does not exist; name a file with {wanted}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text; name a file with {wanted}") from error
