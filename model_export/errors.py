"""Every exception that model_export raises on purpose.

* ModelExportError
  * RecipeError
  * DataError
  * TrainingError
  * SourceError
    · HubUnreachableError, in hub/errors.py
  * ExportError
    · ParityError

Each carries one line that says what is wrong, where, and what to do; the command line prints it and exits
with 2, or with 1 for a ParityError: there the input was right and the result is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class ModelExportError(Exception):
    """Base of all errors of the offline half."""


class RecipeError(ModelExportError):
    """A recipe that cannot be read, or whose values do not fit together."""


class DataError(ModelExportError):
    """Training or evaluation data that cannot be read."""


class TrainingError(ModelExportError):
    """A run that cannot be started, resumed or continued."""


class SourceError(ModelExportError):
    """Weights or their companions that are missing, corrupt or of another shape."""


class ExportError(ModelExportError):
    """A bundle that cannot be written."""


class ParityError(ExportError):
    """Graphs that do not agree with the model they were exported from; nothing was written."""


def problems(exc: ValidationError, *, root: str = "content") -> str:
    """Join pydantic's findings into one line: ``field.name: message; …``; ``root`` names the whole input."""
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or root}: {_message(each['msg'])}" for each in exc.errors())


def messages(exc: ValidationError) -> str:
    """Join pydantic's messages without the names of fields, for input that names them in another way."""
    return "; ".join(_message(each["msg"]) for each in exc.errors())


def _message(text: str) -> str:
    return text.removeprefix("Value error, ")
