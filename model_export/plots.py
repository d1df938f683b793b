"""Check the option ``--plot`` of a command before its long work."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from model_export.errors import DataError
from service.installation import how_to_add


def check_plot(path: Path, extra: str) -> None:
    """Check the name of a plot, and that one can be drawn.

    Args:
        path: of the plot.
        extra: with matplotlib, for this command.

    Raises:
        DataError: the name is not a PNG's, its folder is missing, or matplotlib is not installed.
    """
    if path.suffix.lower() != ".png":
        raise DataError(f"{path}: --plot writes a PNG; name it {path.with_suffix('.png')}")
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path}: the folder does not exist; make it first")
    try:
        import_module("matplotlib.backends.backend_agg")
    except ImportError as exc:
        raise DataError(f"--plot needs matplotlib, and {exc.name} is not installed: {how_to_add(extra)}") from exc
