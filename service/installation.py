"""Installed version, and how to install extras. The project is on no package index, so that needs a clone."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

PAGE: Final = "docs/install.md"
"""Explains the installation."""


def how_to_add(extras: str) -> str:
    """Return the command, run in a clone, that adds extras (as ``convert,cpu``) to the environment of this process."""
    pip, here = Path(sys.prefix) / "bin" / "pip", Path.cwd()
    shown = pip.relative_to(here) if pip.is_relative_to(here) else pip
    return f"in a clone of anyclass, {shown} install -e '.[{extras}]' -c constraints.txt (see {PAGE})"


def _installed_version() -> str:
    """Return the version of the distribution; "0" if it runs from a bare folder."""
    try:
        return version("anyclass")
    except PackageNotFoundError:
        return "0"


VERSION: Final = _installed_version()
