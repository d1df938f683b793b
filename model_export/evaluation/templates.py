"""Choose the template sets to compare: the bundle's, those that ship, ImageNet's 80, or a file."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pydantic import TypeAdapter, ValidationError

from model_export.errors import DataError
from model_export.evaluation.open_clip_metadata import OPENAI_IMAGENET, imagenet_templates, metadata_file
from service.errors import InvalidTemplates
from service.model.manifest import DEFAULT_TEMPLATES
from service.model.prompts import validate_templates

_MOST_TEMPLATES: Final = 1_000
_TEMPLATE_CHARS: Final = 1_000
_File: Final = TypeAdapter[tuple[str, ...] | dict[str, tuple[str, ...]]](tuple[str, ...] | dict[str, tuple[str, ...]])


def choose_templates(wanted: Sequence[str], own: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Find the requested template sets, in their order.

    Args:
        wanted: names or paths of JSON files, which commas may join. If empty, all sets of the bundle, the default
            first. A bundle's set takes precedence over a shipped set of the same name.
        own: the bundle's sets.

    Raises:
        DataError: a set is unknown, a file is invalid, or a template does not hold ``{}`` exactly once.
    """
    names = [name.strip() for part in wanted for name in part.split(",") if name.strip()]
    if not names:
        names = sorted(own, key=lambda name: name != DEFAULT_TEMPLATES)  # stable: only the default moves
    chosen: dict[str, tuple[str, ...]] = {}
    for name in names:
        for title, templates in _sets(name, own).items():
            if chosen.setdefault(title, templates) != templates:
                raise DataError(f"--templates: two different sets have the name {title!r}; rename the one in the file")
    return chosen


def _sets(name: str, own: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    if name in own:
        return {name: tuple(own[name])}
    if name in TEMPLATE_SETS:
        return {name: TEMPLATE_SETS[name]}
    if name == OPENAI_IMAGENET:
        path = metadata_file()
        return {name: _valid(imagenet_templates(path), str(path))}
    path = Path(name)
    if path.suffix.lower() == ".json" or path.is_file():
        return _read(path)
    known = ", ".join([*own, *(other for other in TEMPLATE_SETS if other not in own), OPENAI_IMAGENET])
    raise DataError(f"--templates: {name!r} is not a set; choose from {known}, or name a JSON file")


def _read(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError as exc:
        raise DataError(f"{path}: does not exist; name a JSON file of templates") from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise DataError(f"{path}: is not JSON in UTF-8") from exc
    try:
        sets = _File.validate_python(content, strict=False)
    except ValidationError as exc:
        raise DataError(
            f'{path}: must hold a list of templates, or sets as {{"name": ["a photo of a {{}}."]}}'
        ) from exc
    named = sets if isinstance(sets, dict) else {path.stem: sets}
    if not named:
        raise DataError(f'{path}: holds no template set; write sets as {{"name": ["a photo of a {{}}."]}}')
    return {name: _valid(templates, f"{path}, set {name!r}") for name, templates in named.items()}


def _valid(templates: Sequence[str], origin: str) -> tuple[str, ...]:
    try:
        return validate_templates(templates, max_templates=_MOST_TEMPLATES, max_chars=_TEMPLATE_CHARS)
    except InvalidTemplates as exc:
        raise DataError(f"{origin}: {exc.detail}") from exc


TEMPLATE_SETS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        # From the CLIP authors' notebook on prompt engineering for ImageNet: of their 80 prompts, those that a forward
        # selection picked before it stopped.
        "seven": (
            "itap of a {}.",
            "a bad photo of the {}.",
            "a origami {}.",
            "a photo of the large {}.",
            "a {} in a video game.",
            "art of the {}.",
            "a photo of the small {}.",
        ),
    }
)
