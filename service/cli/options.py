"""What the commands share: exit codes, options, help texts, and how they end with an error."""

import asyncio
import json
import sys
from collections.abc import Coroutine
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
from pydantic import ValidationError

if TYPE_CHECKING:
    from service.cli.remote.client import Service
    from service.settings import Settings

OK: Final = 0
FAILED: Final = 1
BAD_USAGE: Final = 2
INTERRUPTED: Final = 130


class Format(StrEnum):
    """How results are written."""

    table = "table"
    csv = "csv"
    jsonl = "jsonl"
    parquet = "parquet"


LOCAL_URL: Final = "http://127.0.0.1:8000"
RETRY_FOR_S: Final = 60.0
ANOTHER_PORT: Final = "choose another with --port (make run PORT=…), 0 for a free one"
WHERE: Final = "Where"

UrlOption = Annotated[
    str, typer.Option("--url", envvar="ANYCLASS_URL", help="The service's address.", rich_help_panel=WHERE)
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="ANYCLASS_API_KEY",
        help="The service's API key. On the command line other users of the machine may see it; in the variable not.",
        rich_help_panel=WHERE,
        show_default=False,
    ),
]
RetryOption = Annotated[
    float,
    typer.Option(
        "--retry-for",
        min=0.0,
        metavar="SECONDS",
        help="How long to put up with a service that is too busy or starting (429, 503) before giving up.",
        rich_help_panel=WHERE,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the service's answer as JSON.")]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", min=0.0, metavar="SECONDS", help="Give up waiting after so long.")
]


def examples(*commands: str) -> str:
    """The end of a help text: a line each, which a terminal of 80 columns must not break, so that it can be copied."""
    return "[bold]Examples[/bold]\n\n" + "\n".join(commands)


def say(reason: str) -> None:
    """Write one error to standard error."""
    from service.cli.console.rendering import printable

    sys.stderr.write(f"Error: {printable(reason)}\n")


def note(text: str) -> None:
    """Write one line that is no error to standard error."""
    from service.cli.console.rendering import printable

    sys.stderr.write(printable(text) + "\n")


def fail(message: str, code: int = BAD_USAGE) -> NoReturn:
    """End the command with one line on standard error."""
    say(message)
    raise typer.Exit(code)


def settings_of(**given: Any) -> "Settings":  # noqa: ANN401 - each setting has a type of its own
    """The settings, from what was given and the environment; ends the command where they cannot be used."""
    from service.settings import Settings, problems

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as exc:
        *others, last = problems(exc)
        for problem in others:
            say(_with_remedy(problem))
        fail(_with_remedy(last))


def _with_remedy(problem: str) -> str:
    """The port is the setting that people change first, and not by its variable."""
    return f"{problem}; {ANOTHER_PORT}" if problem.startswith("ANYCLASS_PORT:") else problem


def service_at(url: str, api_key: str | None, *, in_flight: int = 1, retry_for_s: float = RETRY_FOR_S) -> "Service":
    """A service, not yet asked anything; ends the command where its URL or the key cannot be used."""
    from service.cli.remote.client import RemoteError, Service

    try:
        return Service(url, api_key=api_key, in_flight=in_flight, retry_for_s=retry_for_s, tell=note)
    except RemoteError as exc:
        fail(str(exc), exc.exit_code)


def finish(work: Coroutine[Any, Any, int]) -> NoReturn:
    """Run what a command does with a service, and end the command with the exit code that it gives."""
    from service.cli.inputs import InputError
    from service.cli.remote.client import RemoteError

    try:
        code = asyncio.run(work)
    except InputError as exc:
        fail(str(exc))
    except RemoteError as exc:
        fail(str(exc), exc.exit_code)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(code)


def print_json(value: object) -> None:
    """Print a JSON document; ASCII, so that no terminal's or pipe's encoding can spoil it."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def bundle_path(model: str | None) -> Path | None:
    """The folder of the bundle that was asked for."""
    return None if model is None else Path(model)
