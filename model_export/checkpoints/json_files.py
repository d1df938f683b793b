"""JSON files of a source: read, and checked against a pydantic model, with errors that name the file."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from model_export.errors import SourceError, problems
from model_export.files import decoded, read

_Model = TypeVar("_Model", bound=BaseModel)


def read_object(path: Path, *, hint: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        SourceError: the file is not there (``hint`` says what may be wrong), or holds something else.
    """
    text = decoded(read(path, hint=hint), path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise SourceError(f"{path}: is not JSON ({exc})") from exc
    if not isinstance(content, dict):
        raise SourceError(f"{path}: must hold a JSON object")
    return content


def checked(model: type[_Model], fields: dict[str, Any], path: Path) -> _Model:
    """Make a model from what a file says.

    Raises:
        SourceError: a field is missing, or of another kind; it is named.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as exc:
        raise SourceError(f"{path}: {problems(exc)}") from exc
