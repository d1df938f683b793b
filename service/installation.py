"""How the packages of an extra are had, for messages. The project is on no package index: it takes a clone."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

PAGE: Final = "docs/install.md"
"""The page that explains it."""


def how_to_add(extras: str) -> str:
    """The command that adds extras (as ``convert,cpu``) to the environment of this process, run in a clone."""
    pip, here = Path(sys.prefix) / "bin" / "pip", Path.cwd()
    shown = pip.relative_to(here) if pip.is_relative_to(here) else pip
    return f"in a clone of anyclass, {shown} install -e '.[{extras}]' -c constraints.txt (see {PAGE})"


def installed_version() -> str:
    """The version of the distribution; "0" when it runs from a bare folder."""
    try:
        return version("anyclass")
    except PackageNotFoundError:
        return "0"


VERSION: Final = installed_version()
