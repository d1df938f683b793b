"""The version that is installed."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final


def installed_version() -> str:
    """The version of the distribution; "0" when it runs from a bare folder."""
    try:
        return version("anyclass")
    except PackageNotFoundError:
        return "0"


VERSION: Final = installed_version()
