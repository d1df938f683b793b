"""The command `anyclass`: `serve` and `version`, and the others from their modules.

Exit codes: 0; 1 for a failure; 2 for bad usage or input; 130 for Ctrl-C.
"""

import errno
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from service.cli import label_sets
from service.cli.batches import command as batches_command
from service.cli.classify.command import EXAMPLES, EXIT_CODES, HELP, classify
from service.cli.options import ANOTHER_PORT, examples, load_settings
from service.cli.reporting import FAILED, fail
from service.cli.tune import EXAMPLES as TUNE_EXAMPLES
from service.cli.tune import tune
from service.model.engine.provider_table import ProviderName

if TYPE_CHECKING:
    from service.settings import Settings

_ANOTHER_HOST: Final = "choose an address of this machine with --host (make run HOST=…)"
_PORT_ERRORS: Final = (errno.EADDRINUSE, errno.EACCES)

app = typer.Typer(
    name="anyclass",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - typer's signature
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Classify any image against any labels."""


app.command(help=HELP, epilog=examples(*EXAMPLES) + "\n\n" + EXIT_CODES)(classify)
app.command(epilog=TUNE_EXAMPLES)(tune)
app.add_typer(label_sets.app, name="label-sets")
app.add_typer(batches_command.app, name="batches")

ModelsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--model",
        help="Folder of a model bundle; without it the demo model. Repeat it for more models, which requests name.",
    ),
]
ProviderOption = Annotated[
    ProviderName | None, typer.Option("--provider", help="Execution provider that runs the model.")
]


@app.command(epilog=examples("anyclass serve", "anyclass serve --port 9000 --model bundles/vit-b-32"))
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on. \\[default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, 0 for a free one. \\[default: 8000]")] = None,
    model: ModelsOption = None,
    provider: ProviderOption = None,
    tune_: Annotated[
        bool | None,
        typer.Option(
            "--tune/--no-tune",
            help="Let auto time the providers at the first start here; without it the CPU's flags decide. "
            "\\[default: tune]",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes on the port, each with its own models; see docs/workers.md. \\[default: 1]"),
    ] = None,
    welcome: Annotated[
        bool | None,
        typer.Option("--welcome/--no-welcome", help="Print a request to try once ready. \\[default: on a terminal]"),
    ] = None,
) -> None:
    """Start the HTTP service. Every setting can also be set as a variable ANYCLASS_…; see docs/settings.md."""
    from service.monitoring import logs

    given: dict[str, Any] = {"host": host, "port": port, "workers": workers}
    given |= {"provider": provider, "tune": tune_}
    if model:
        given |= {"model": model[0], "more_models": tuple(model[1:])}
    settings = load_settings(**given)
    # On a terminal, lines are easier to read than JSON.
    if "log_format" not in settings.model_fields_set and sys.stderr.isatty():
        settings = settings.model_copy(update={"log_format": "console"})
    logs.configure(settings.log_level, settings.log_format)
    _warn_of_unknown_variables()

    from service.cli.serve.server import Server, bind, url_of
    from service.cli.serve.supervisor import Supervisor, check_workers
    from service.errors import ConfigurationError

    try:
        check_workers(settings)
    except ConfigurationError as exc:
        fail(exc.detail)
    try:
        listener = bind(settings.host, settings.port)
    except OSError as exc:
        remedy = ANOTHER_PORT if exc.errno in _PORT_ERRORS else _ANOTHER_HOST
        fail(f"cannot listen on {settings.host}, port {settings.port}: {exc.strerror or exc}; {remedy}", FAILED)
    url = url_of(listener)
    logs.get_logger("service.cli").info("listening", url=url, pid=os.getpid())
    shows_welcome = welcome if welcome is not None else sys.stdout.isatty()
    if settings.workers > 1:
        supervisor = Supervisor(settings, listener)
        if shows_welcome:
            supervisor.when_ready = lambda model, seconds: _welcome(url, model, seconds, settings)
        raise typer.Exit(supervisor.run())

    from service.app import create_app

    application = create_app(settings)
    services = application.state.services
    if shows_welcome:
        services.lifecycle.when_ready(lambda seconds: _welcome(url, services.models.default, seconds, settings))
    server = Server(application, settings)
    code = server.run_on(listener)
    if server.force_exit:
        # A regular exit would wait for threads that are still busy.
        sys.stderr.flush()
        os._exit(code)
    raise typer.Exit(code)


@app.command()
def version() -> None:
    """Print the version."""
    from service.installation import VERSION

    typer.echo(VERSION)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        # Characters that the terminal's encoding lacks become question marks instead of an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()


def _warn_of_unknown_variables() -> None:
    """Warn of misspelt settings, which otherwise have no effect without any sign."""
    from service.monitoring import logs
    from service.settings import unknown_variables

    for name, meant in unknown_variables(os.environ).items():
        warning = f"{name} is not a setting of the service and has no effect"
        logs.get_logger("service.cli").warning(warning + (f"; did you mean {meant}?" if meant else ""))


def _welcome(url: str, model: str, seconds: float, settings: "Settings") -> None:
    from service.cli.console import rendering
    from service.installation import VERSION

    folders = [Path.cwd() / "examples", Path(__file__).parents[2] / "examples"]
    photo = rendering.example_photo(folders)
    keyed = settings.api_keys is not None or settings.api_keys_file is not None
    typer.echo(rendering.welcome(url, version=VERSION, model=model, seconds=seconds, photo=photo, keyed=keyed))
