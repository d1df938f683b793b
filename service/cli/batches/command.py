"""`anyclass batches`: files of requests that a service answers in the background."""

import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from service.cli.batches.view import ENDED, MEMBERS, poll_status, print_batch, print_batches
from service.cli.options import JsonOption, TimeoutOption
from service.cli.remote.command import remote_command
from service.cli.reporting import BAD_USAGE, FAILED, OK, fail, print_error, print_json

if TYPE_CHECKING:
    from service.cli.remote.client import Service

_MAX_PAGE: Final = 100
_SHOWN_FAULTS: Final = 5
"""Of an input file. A file of the wrong kind has a fault in every line."""

app = typer.Typer(
    help="Batch jobs: files of requests that a service answers in the background.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

BatchArgument = Annotated[str, typer.Argument(metavar="BATCH", help="Id of the batch.", show_default=False)]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Write the answers to this file; - is the standard output."),
]
ErrorsOption = Annotated[
    Path | None,
    typer.Option("--errors", metavar="FILE", help="Write the failed lines to this file; - is the standard output."),
]


@remote_command(
    app,
    "create",
    "anyclass batches create requests.jsonl",
    "anyclass batches create requests.jsonl --wait --output answers.jsonl",
    "anyclass batches create texts.jsonl --endpoint /v1/embeddings --window 2h",
)
def create(
    service: "Service",
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Requests, a line of JSON each.", show_default=False)],
    *,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", help="Route that answers each line. \\[default: the one in the first line]"),
    ] = None,
    window: Annotated[str, typer.Option("--window", help="Time until it expires: whole hours, 1h to 168h.")] = "24h",
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", metavar="KEY=VALUE", help="Kept with the batch; may be repeated."),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key",
            metavar="KEY",
            help="Repeating the command with the same key returns the same batch, for 24 hours. \\[default: a new key]",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the batch has ended.")] = False,
    output: OutputOption = None,
    errors: ErrorsOption = None,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> Coroutine[Any, Any, int]:
    """Send a file and start a batch for it. Prints the batch's id."""
    from service.cli.batches.files import read_endpoint, start

    if (output or errors) and not wait:
        fail("--output and --errors go with --wait; later: anyclass batches download")
    if as_json and Path("-") in (output, errors):
        fail("--json and the results cannot both go to the standard output")
    pairs = _pairs(metadata or [])

    async def work() -> int:
        named = await read_endpoint(file)
        batch = await start(
            service,
            file,
            endpoint=endpoint or named,
            window=window,
            metadata=pairs,
            idempotency_key=idempotency_key,
        )
        if not wait:
            print_batch(batch, as_json=as_json, short=True)
            return OK
        sys.stderr.write(f"{batch['id']}\n")
        return await _wait(service, batch["id"], timeout, output, errors, as_json=as_json)

    return work()


@remote_command(app, "list", "anyclass batches list", "anyclass batches list --limit 5 --json")
async def list_batches(
    service: "Service",
    *,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Number of batches, newest first.")] = 20,
    as_json: JsonOption = False,
) -> int:
    """List the batches, newest first."""
    found: list[dict[str, Any]] = []
    more = True
    while more and len(found) < limit:
        params: dict[str, Any] = {"limit": min(_MAX_PAGE, limit - len(found))}
        if found:
            params["after"] = found[-1]["id"]
        page = await service.json("GET", "/v1/batches", ("data", "has_more"), params=params)
        found += page["data"]
        more = page["has_more"]
    if as_json:
        print_json(found)
    else:
        print_batches(found)
    return OK


@remote_command(app, "status", "anyclass batches status batch_0199…")
async def status(service: "Service", batch: BatchArgument, *, as_json: JsonOption = False) -> int:
    """Show the status and the progress of a batch."""
    print_batch(await service.json("GET", _path(batch), MEMBERS), as_json=as_json)
    return OK


@remote_command(
    app, "wait", "anyclass batches wait batch_0199…", "anyclass batches wait batch_0199… --output answers.jsonl"
)
def wait(
    service: "Service",
    batch: BatchArgument,
    *,
    output: OutputOption = None,
    errors: ErrorsOption = None,
    timeout: TimeoutOption = None,
) -> Coroutine[Any, Any, int]:
    """Wait until a batch has ended, with a progress bar. Exits with 0 only if every line was answered."""
    return _wait(service, batch, timeout, output, errors)


@remote_command(app, "cancel", "anyclass batches cancel batch_0199…")
async def cancel(service: "Service", batch: BatchArgument, *, as_json: JsonOption = False) -> int:
    """Cancel a batch. Lines that were answered keep their answers."""
    print_batch(await service.json("POST", f"{_path(batch)}/cancel", MEMBERS), as_json=as_json, short=True)
    return OK


@remote_command(
    app,
    "download",
    "anyclass batches download batch_0199… > answers.jsonl",
    "anyclass batches download batch_0199… -o answers.jsonl --errors errors.jsonl",
)
async def download(
    service: "Service", batch: BatchArgument, *, output: OutputOption = None, errors: ErrorsOption = None
) -> int:
    """Download the answers and the failed lines of an ended batch; by default the answers, to the standard output."""
    found = await service.json("GET", _path(batch), MEMBERS)
    if found["status"] not in ENDED:
        print_error(f"{batch} is still {found['status']}; wait for it: anyclass batches wait {batch}")
        return FAILED
    target = Path("-") if output is None and errors is None else output
    await _fetch(service, found, target, errors)
    return OK


def _path(batch: str) -> str:
    from urllib.parse import quote

    return f"/v1/batches/{quote(batch, safe='')}"


async def _wait(
    service: "Service",
    batch_id: str,
    timeout_s: float | None,
    output: Path | None,
    errors: Path | None,
    *,
    as_json: bool = False,
) -> int:
    from service.cli.remote.polling import poll

    batch = await poll(
        lambda: service.json("GET", _path(batch_id), MEMBERS), poll_status, noun="lines", timeout_s=timeout_s
    )
    await _fetch(service, batch, output, errors)
    # Answers on the standard output must not be mixed with anything else.
    if Path("-") not in (output, errors):
        print_batch(batch, as_json=as_json, short=True)
    faults = (batch["errors"] or {"data": []})["data"]
    for fault in faults[:_SHOWN_FAULTS]:
        line = "" if fault["line"] is None else f"line {fault['line']}: "
        print_error(f"{line}{fault['message']}")
    if len(faults) > _SHOWN_FAULTS:
        print_error(f"and {len(faults) - _SHOWN_FAULTS} more; see them all: anyclass batches status {batch['id']}")
    if batch["status"] == "failed":
        return BAD_USAGE
    return OK if batch["status"] == "completed" and not batch["request_counts"]["failed"] else FAILED


async def _fetch(service: "Service", batch: dict[str, Any], output: Path | None, errors: Path | None) -> None:
    from service.cli.batches.files import fetch

    for file_id, target in ((batch["output_file_id"], output), (batch["error_file_id"], errors)):
        if target is not None:
            await fetch(service, file_id, target)


def _pairs(given: list[str]) -> dict[str, str] | None:
    pairs = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not key or not equals:
            fail(f"--metadata takes KEY=VALUE, not {text}")
        pairs[key] = value
    return pairs or None
