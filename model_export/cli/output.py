"""Exit codes of ``anyclass-export``, and its single lines of output."""

from typing import NoReturn

from rich.console import Console
from rich.markup import escape

FAILED = 1
WRONG_INPUT = 2
PACKAGE_MISSING = 3
INTERRUPTED = 130


def say(console: Console, line: str) -> None:
    """Print one line of markup, however long."""
    console.print(line, highlight=False, soft_wrap=True)


def stop(message: str, code: int = WRONG_INPUT) -> NoReturn:
    """Print an error as one line on stderr, and exit."""
    message = " ".join(message.split())  # a library's message may have several lines
    say(Console(stderr=True), f"[red]error:[/] {escape(message)}")
    raise SystemExit(code)
