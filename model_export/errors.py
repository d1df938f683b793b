"""Every exception that model_export raises on purpose.

* ModelExportError
  * RecipeError
  * DataError
  * TrainingError
  * SourceError
    · HubUnreachableError, in hub_problems.py
  * ExportError
    · ParityError

Each carries one line that says what is wrong, where, and what to do; the command line prints it and exits
with 2, or with 1 for a ParityError: there the input was right and the result is not.
"""


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
