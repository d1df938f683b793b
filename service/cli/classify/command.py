"""Options and help of `anyclass classify`, and checks of their combinations."""

import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from service.cli.options import RETRY_FOR_S, WHERE, ApiKeyOption, Format, RetryOption, load_settings
from service.cli.remote.command import connect
from service.cli.reporting import fail
from service.model.choices import ScoringMethod
from service.model.engine.provider_table import ProviderName

_LABELS: Final = "Labels"
_SCORES: Final = "Scores"
_OUTPUT: Final = "Results"
_IN_FLIGHT: Final = 8


EXAMPLES: Final = (
    "anyclass classify photo.jpg --labels cat,dog,rocket",
    "anyclass classify photos/ --labels-file labels.txt --output results.csv",
    "anyclass classify 'photos/*.png' --labels cat,dog --json | jq .predictions",
    "anyclass classify photo.jpg --labels cat,dog --templates 'a drawing of a {}.'",
    "anyclass classify photos/ --label-set animals --url http://127.0.0.1:8000",
)
HELP: Final = (
    "Classify image files against labels: in this process, or with --url by a running service.\n\n"
    "Results come in the order of the images. An image that cannot be classified fails no other: "
    "the reason is on standard error, and in CSV, JSON and Parquet too."
)
EXIT_CODES: Final = (
    "[bold]Exit codes[/bold]\n\n0: every image was classified; 1: some were not, or something failed; "
    "2: the options or inputs are invalid; 130: interrupted (Ctrl-C)."
)


def classify(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="Image files, folders (all the images in and below them), and quoted patterns such as 'a/**/*.jpg'.",
            show_default=False,
        ),
    ],
    *,
    labels: Annotated[
        list[str] | None,
        typer.Option("--labels", help="Labels with commas between them; may be repeated.", rich_help_panel=_LABELS),
    ] = None,
    labels_file: Annotated[
        Path | None,
        typer.Option(
            "--labels-file",
            help="File with a label on each line, # begins a comment; - is the standard input.",
            rich_help_panel=_LABELS,
        ),
    ] = None,
    label_set: Annotated[
        str | None,
        typer.Option(
            "--label-set",
            metavar="NAME",
            help="Use a label set that the service keeps, in place of labels and templates; needs --url.",
            rich_help_panel=_LABELS,
        ),
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option(
            "--templates",
            help="Name of a template set, or a template with {}; templates may be repeated.",
            rich_help_panel=_LABELS,
        ),
    ] = None,
    scoring: Annotated[
        ScoringMethod | None,
        typer.Option("--scoring", help="Scoring method. \\[default: the model's own]", rich_help_panel=_SCORES),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Only the best labels.", rich_help_panel=_SCORES)
    ] = None,
    min_score: Annotated[
        float | None, typer.Option("--min-score", help="Only labels of at least this score.", rich_help_panel=_SCORES)
    ] = None,
    temperature: Annotated[
        float,
        typer.Option("--temperature", help="Above 1 the scores are flatter, below 1 sharper.", rich_help_panel=_SCORES),
    ] = 1.0,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Folder of a model bundle, or with --url the name of a model. "
            "\\[default: the demo model, or the service's default]",
            rich_help_panel=WHERE,
        ),
    ] = None,
    provider: Annotated[
        ProviderName | None,
        typer.Option(
            "--provider", help="Execution provider that runs the model; not with --url.", rich_help_panel=WHERE
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            envvar="ANYCLASS_URL",
            help="Have the service at this address classify; no model is loaded here.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    api_key: ApiKeyOption = None,
    in_flight: Annotated[
        int,
        typer.Option(
            "--in-flight",
            min=1,
            max=256,
            help="Concurrent requests with --url; fewer while the service is busy.",
            rich_help_panel=WHERE,
        ),
    ] = _IN_FLIGHT,
    retry_for: RetryOption = RETRY_FOR_S,
    results_format: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="Format of the results. \\[default: by the name of the file, else table]",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write results to this file, not to the standard output.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="A line of JSON for each image: --format jsonl.", rich_help_panel=_OUTPUT)
    ] = False,
    progress: Annotated[
        bool,
        typer.Option("--progress/--no-progress", help="Show a progress bar on a terminal.", rich_help_panel=_OUTPUT),
    ] = True,
) -> None:
    """See `HELP`. It is not in this docstring because typer would keep the line breaks."""
    from service.classification.types import LabelQuery, ScoringOptions
    from service.cli.classify.output import format_for
    from service.cli.classify.run import ClassifyArguments, run_local, run_remote
    from service.cli.inputs import InputError, find_images, parse_templates, read_labels

    if as_json and results_format not in (None, "jsonl"):
        fail(f"--json and --format {results_format} contradict each other")
    try:
        chosen = "jsonl" if as_json else results_format or format_for(output)
        _check_output(chosen, output)
        given = read_labels(labels or [], labels_file)
        found = find_images(images)
    except InputError as exc:
        fail(str(exc))
    if label_set is not None:
        if not url:
            fail("--label-set needs a service; give --url")
        if given or templates:
            fail("--label-set has its own labels and templates; drop --labels, --labels-file and --templates")
    elif not given:
        fail("no labels; give --labels a,b,c or --labels-file" + (" or --label-set" if url else ""))
    if not temperature > 0:
        fail("--temperature must be above 0")
    arguments = ClassifyArguments(
        images=tuple(found.images),
        passed_over=tuple(found.passed_over),
        query=LabelQuery(tuple(given), parse_templates(templates or []), label_set),
        options=ScoringOptions(method=scoring, top_k=top_k, min_score=min_score, temperature=temperature),
        format=chosen,
        output=output,
        progress=progress,
    )
    if url:
        if provider is not None:
            fail("--provider has no effect with --url: the service chooses it; drop one of them")
        service = connect(url, api_key, in_flight=in_flight, retry_for_s=retry_for)
        raise typer.Exit(run_remote(arguments, service, model=model, in_flight=in_flight))
    settings = load_settings(model=None if model is None else Path(model), provider=provider)
    raise typer.Exit(run_local(arguments, settings))


def _check_output(chosen: Format, output: Path | None) -> None:
    """End the command before classification if its results could not be written."""
    if output is None:
        if chosen == "parquet" and sys.stdout.isatty():
            fail("Parquet cannot be shown on a terminal; give --output FILE")
    elif output.is_dir():
        fail(f"cannot write {output}: it is a folder")
    elif not output.parent.is_dir():
        fail(f"cannot write {output}: the folder {output.parent} does not exist")
