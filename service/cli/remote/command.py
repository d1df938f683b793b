"""Commands that send requests to a running service."""

import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import typer

from service.cli.options import LOCAL_URL, RETRY_FOR_S, ApiKeyOption, RetryOption, UrlOption, examples
from service.cli.reporting import INTERRUPTED, fail, print_note

if TYPE_CHECKING:
    from service.cli.remote.client import Service

RemoteWork: TypeAlias = Callable[..., Coroutine[Any, Any, int]]

_OPTIONS: Final = tuple(
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
    for name, default, annotation in (
        ("url", LOCAL_URL, UrlOption),
        ("api_key", None, ApiKeyOption),
        ("retry_for", RETRY_FOR_S, RetryOption),
    )
)


def remote_command(app: typer.Typer, name: str, *shown: str) -> Callable[[RemoteWork], RemoteWork]:
    """Add a command that talks to a running service, with the examples `shown` in its help.

    The decorated function takes a `Service` before its own arguments and returns a coroutine: what runs while the
    connection is open, and results in the exit code. Its docstring is the help. The options `--url`, `--api-key` and
    `--retry-for` follow its own.
    """

    def register(work: RemoteWork) -> RemoteWork:
        _, *parameters = inspect.signature(work).parameters.values()
        parameters += _OPTIONS

        def run(*, url: str, api_key: str | None, retry_for: float, **given: Any) -> None:  # noqa: ANN401 - of `work`
            service = connect(url, api_key, retry_for_s=retry_for)
            _finish(service, work(service, **given))

        # typer reads both.
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        app.command(name, help=work.__doc__, epilog=examples(*shown))(run)
        return work

    return register


def connect(url: str, api_key: str | None, *, in_flight: int = 1, retry_for_s: float = RETRY_FOR_S) -> "Service":
    """Return a client of the service, without sending a request; end the command if the URL or the key is invalid."""
    from service.cli.remote.client import RemoteError, Service

    try:
        return Service(url, api_key=api_key, in_flight=in_flight, retry_for_s=retry_for_s, on_wait=print_note)
    except RemoteError as exc:
        fail(str(exc), exc.exit_code)


def _finish(service: "Service", work: Coroutine[Any, Any, int]) -> NoReturn:
    """Run `work` while connected, and end the command with its exit code."""
    import asyncio

    from service.cli.inputs import InputError
    from service.cli.remote.client import RemoteError

    async def connected() -> int:
        async with service:
            return await work

    try:
        code = asyncio.run(connected())
    except InputError as exc:
        fail(str(exc))
    except RemoteError as exc:
        fail(str(exc), exc.exit_code)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(code)
