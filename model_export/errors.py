"""The exceptions of model_export.

* ModelExportError
  * RecipeError
  * DataError
    · BrokenRowError, in data/pairs.py
    · ServerError
  * TrainingError
    · LostRankError
    · OtherRankError
  * CurationError
  * DriverError
  * SourceError
    · HubUnreachableError, in hub/errors.py
    · IncompleteError
  * ExportError
    · ParityError

The message is one line: the place, the problem and the remedy. The command line prints it and exits with 2, or with 1
for a ParityError, a LostRankError or a ServerError: the input was right, the result is not. An OtherRankError is not
printed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


class ModelExportError(Exception):
    """Base of all errors of the offline half."""


class RecipeError(ModelExportError):
    """A recipe cannot be read, or its values do not fit together."""


class DataError(ModelExportError):
    """Training or evaluation data cannot be read."""


class ServerError(DataError):
    """The server of a data file failed; it may answer later."""


class TrainingError(ModelExportError):
    """A run cannot start, resume or continue."""


class LostRankError(TrainingError):
    """Another process of the same training ended without a message."""


class OtherRankError(TrainingError):
    """Another process of the same training failed, and gives the reason; this one has nothing to say."""


class CurationError(ModelExportError):
    """A curation cannot start, go on, or be verified."""


class DriverError(ModelExportError):
    """Tasks cannot be run: processes are killed, or a cluster is not reached."""


class SourceError(ModelExportError):
    """Weights or their companion files are missing, corrupt or of another shape."""


class IncompleteError(SourceError):
    """A source lacks files: by the names of those it has, no reader can read it."""


class ExportError(ModelExportError):
    """A bundle cannot be written."""


class ParityError(ExportError):
    """Exported graphs do not agree with their model; nothing was written."""


def problems(
    exc: ValidationError, *, root: str = "content", explain: Callable[[ErrorDetails], str | None] = lambda _: None
) -> str:
    """Join pydantic's findings into one line: ``field.name: message; …``.

    Args:
        root: names the whole input.
        explain: returns a message for a finding in place of pydantic's, or None.
    """
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or root}: {explain(each) or _message(each['msg'])}" for each in exc.errors()
    )


def messages(exc: ValidationError) -> str:
    """Join pydantic's messages without the names of fields, for input that names them in another way."""
    return "; ".join(_message(each["msg"]) for each in exc.errors())


def first_line(exc: Exception) -> str:
    """Return the first line of a library's message, or the exception's name if it has none."""
    return next(iter(str(exc).splitlines()), type(exc).__name__)


def _message(text: str) -> str:
    return text.removeprefix("Value error, ")
