"""Options, help texts and settings that the commands share."""

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from service.cli.reporting import fail, print_error

if TYPE_CHECKING:
    from service.settings import Settings


Format = Literal["table", "csv", "jsonl", "parquet"]

LOCAL_URL: Final = "http://127.0.0.1:8000"
RETRY_FOR_S: Final = 60.0
ANOTHER_PORT: Final = "choose another with --port (make run PORT=…), 0 for a free one"
WHERE: Final = "Where"

UrlOption = Annotated[
    str, typer.Option("--url", envvar="ANYCLASS_URL", help="Address of the service.", rich_help_panel=WHERE)
]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        envvar="ANYCLASS_API_KEY",
        help="API key of the service. Other users of the machine can see it on the command line, not in the variable.",
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
        help="How long to retry while the service is busy or starting (429, 503).",
        rich_help_panel=WHERE,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the service's answer as JSON.")]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", min=0.0, metavar="SECONDS", help="Stop waiting after this time.")
]


def examples(*commands: str) -> str:
    """Return the examples at the end of a help text, one a line.

    Each must fit a terminal of 80 columns: a command that wraps cannot be copied.
    """
    return "[bold]Examples[/bold]\n\n" + "\n".join(commands)


def load_settings(**given: Any) -> "Settings":  # noqa: ANN401 - each setting has a type of its own
    """Return the settings from arguments and the environment; end the command if they are invalid."""
    from pydantic import ValidationError

    from service.settings import Settings, problems

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as exc:
        *others, last = map(_with_remedy, problems(exc))
        for problem in others:
            print_error(problem)
        fail(last)


def _with_remedy(problem: str) -> str:
    """Name the option for the port: people change it first, and not by its variable."""
    return f"{problem}; {ANOTHER_PORT}" if problem.startswith("ANYCLASS_PORT:") else problem
