"""Exit codes, errors, notes and JSON of the commands."""

import json
import sys
from typing import Final, NoReturn

import typer

OK: Final = 0
FAILED: Final = 1
BAD_USAGE: Final = 2
INTERRUPTED: Final = 130


def print_error(reason: str) -> None:
    """Write one error to standard error."""
    from service.cli.console.rendering import printable

    sys.stderr.write(f"Error: {printable(reason)}\n")


def print_note(text: str) -> None:
    """Write one line that is not an error to standard error."""
    from service.cli.console.rendering import printable

    sys.stderr.write(printable(text) + "\n")


def fail(message: str, code: int = BAD_USAGE) -> NoReturn:
    """End the command with one line on standard error."""
    print_error(message)
    raise typer.Exit(code)


def print_json(value: object) -> None:
    """Print a JSON document. It is ASCII: no terminal or pipe can garble it."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
