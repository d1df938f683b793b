"""The commands serve, classify and version. Exit codes: 0, 1 when something failed, 2 for bad usage or input."""

import io
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
from pydantic import ValidationError

if TYPE_CHECKING:
    from service.settings import Settings

FAILED: Final = 1
BAD_USAGE: Final = 2

app = typer.Typer(
    name="anyclass",
    help="Classify any image against any labels.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)


class ProviderChoice(StrEnum):
    """What runs the model."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"
    openvino = "openvino"


class ScoringChoice(StrEnum):
    """How similarities become scores."""

    softmax = "softmax"
    sigmoid = "sigmoid"
    cosine = "cosine"


def _examples(*commands: str) -> str:
    """The end of a help text."""
    return "[bold]Examples[/bold]\n\n" + "\n\n".join(commands)


ModelsOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--model",
        help="Folder of a model bundle; the demo model when left out. Again: one more, which requests name.",
    ),
]
ProviderOption = Annotated[ProviderChoice | None, typer.Option("--provider", help="What runs the model.")]


@app.command(epilog=_examples("anyclass serve", "anyclass serve --port 9000 --model bundles/vit-b-32"))
def serve(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on. \\[default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, 0 for a free one. \\[default: 8000]")] = None,
    model: ModelsOption = None,
    provider: ProviderOption = None,
    welcome: Annotated[
        bool | None,
        typer.Option("--welcome/--no-welcome", help="Say what to try once ready. \\[default: on a terminal]"),
    ] = None,
) -> None:
    """Start the HTTP service. Every setting can also be given as a variable ANYCLASS_…; see docs/settings.md."""
    from service import logs

    given: dict[str, Any] = {"host": host, "port": port, "provider": provider.value if provider else None}
    if model:
        given |= {"model": model[0], "more_models": tuple(model[1:])}
    settings = _settings(**given)
    # A person at a terminal who said nothing about it reads lines more easily than JSON.
    chosen = "log_format" in settings.model_fields_set
    logs.configure(settings.log_level, settings.log_format if chosen or not sys.stderr.isatty() else "console")

    from service.app import create_app
    from service.cli.server import Server, bind, url_of

    try:
        listener = bind(settings.host, settings.port)
    except OSError as exc:
        _fail(f"cannot listen on {settings.host}, port {settings.port}: {exc.strerror or exc}", FAILED)
    url = url_of(listener)
    application = create_app(settings)
    services = application.state.services
    logs.get_logger("service.cli").info("listening", url=url, pid=os.getpid())
    if welcome if welcome is not None else sys.stdout.isatty():
        services.lifecycle.when_ready(lambda seconds: _welcome(url, services.models.default, seconds))
    server = Server(application, settings)
    code = server.run_on(listener)
    if server.force_exit:
        # Threads that are still busy would be waited for at a regular exit.
        sys.stderr.flush()
        os._exit(code)
    raise typer.Exit(code)


@app.command(
    epilog=_examples(
        "anyclass classify photo.jpg --labels cat,dog,rocket",
        "anyclass classify *.jpg --labels-file labels.txt --top-k 3 --json",
        "anyclass classify photo.jpg --labels cat,dog --templates 'a drawing of a {}.'",
        "anyclass classify photo.jpg --labels cat,dog --url http://127.0.0.1:8000",
    )
)
def classify(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="Image files.", show_default=False)],
    *,
    labels: Annotated[
        list[str] | None, typer.Option("--labels", help="Labels with commas between them; may be repeated.")
    ] = None,
    labels_file: Annotated[
        Path | None, typer.Option("--labels-file", help="File with a label on each line; - is the standard input.")
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option("--templates", help="Name of a template set, or a template with {}; templates may be repeated."),
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", min=1, help="Show the best labels only.")] = None,
    min_score: Annotated[float | None, typer.Option("--min-score", help="Show labels of at least this score.")] = None,
    scoring: Annotated[
        ScoringChoice | None, typer.Option("--scoring", help="How to score; else the model's way.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Folder of a model bundle, or with --url a model's name; else the default."),
    ] = None,
    provider: ProviderOption = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Ask the service at this URL; nothing is loaded here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each image.")] = False,
) -> None:
    """Classify image files against labels: in this process, or with --url by a running service."""
    from service.classifier import LabelQuery, ScoringOptions
    from service.cli.classify import Job, run_here, run_remote

    given = _labels(labels or [], labels_file)
    if not given:
        _fail("no labels; give --labels a,b,c or --labels-file", BAD_USAGE)
    query = LabelQuery(tuple(given), _templates(templates or []))
    options = ScoringOptions(method=scoring.value if scoring else None, top_k=top_k, min_score=min_score)
    job = Job(images=tuple(images), query=query, options=options, as_json=as_json)
    if url is not None:
        if provider is not None:
            _fail("--provider is the service's business with --url", BAD_USAGE)
        raise typer.Exit(run_remote(job, url, model=model))
    path = Path(model) if model is not None else None
    settings = _settings(model=path, provider=provider.value if provider else None)
    raise typer.Exit(run_here(job, settings))


@app.command()
def version() -> None:
    """Print the version."""
    from service.api.version import VERSION

    typer.echo(VERSION)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        # A label that the terminal's encoding lacks is shown with a question mark, rather than nothing at all.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()


def _settings(**given: Any) -> "Settings":  # noqa: ANN401 - each setting has a type of its own
    from service.settings import Settings, problems

    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as exc:
        _fail("\n       ".join(problems(exc)), BAD_USAGE)


def _labels(commas: list[str], file: Path | None) -> list[str]:
    labels = [label.strip() for text in commas for label in text.split(",") if label.strip()]
    if file is None:
        return labels
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except OSError as exc:
        _fail(f"cannot read {file}: {exc.strerror or exc}", BAD_USAGE)
    except UnicodeDecodeError:
        _fail(f"cannot read {file}: it is not text in UTF-8", BAD_USAGE)
    return labels + [line.strip() for line in text.split("\n") if line.strip()]


def _templates(given: list[str]) -> str | tuple[str, ...]:
    if not given:
        return "default"
    if len(given) == 1 and "{}" not in given[0]:
        return given[0]
    return tuple(given)


def _welcome(url: str, model: str, seconds: float) -> None:
    from service.api.version import VERSION
    from service.cli import terminal

    folders = [Path.cwd() / "examples", Path(__file__).parents[2] / "examples"]
    photo = terminal.example_photo(folders)
    typer.echo(terminal.welcome(url, version=VERSION, model=model, seconds=seconds, photo=photo))


def _fail(message: str, code: int) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    raise typer.Exit(code)
