"""`anyclass batches`: files of requests that a service answers in the background."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from service.cli.batches.view import ENDED, MEMBERS, print_batch, print_batches, standing_of
from service.cli.options import (
    BAD_USAGE,
    FAILED,
    LOCAL_URL,
    OK,
    RETRY_FOR_S,
    ApiKeyOption,
    JsonOption,
    RetryOption,
    TimeoutOption,
    UrlOption,
    examples,
    fail,
    finish,
    print_json,
    say,
    service_at,
)

if TYPE_CHECKING:
    from service.cli.remote.client import Service

_MAX_PAGE: Final = 100
_SHOWN_FAULTS: Final = 5
"""Of an input file; a file of another kind has one in each of its lines."""

app = typer.Typer(
    help="Batch jobs: files of requests that a service answers in the background.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

BatchArgument = Annotated[str, typer.Argument(metavar="BATCH", help="The batch's id.", show_default=False)]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Where to write the answers; - is the standard output."),
]
ErrorsOption = Annotated[
    Path | None,
    typer.Option("--errors", metavar="FILE", help="Where to write the lines that failed; - as for --output."),
]


@app.command(
    epilog=examples(
        "anyclass batches create requests.jsonl",
        "anyclass batches create requests.jsonl --wait --output answers.jsonl",
        "anyclass batches create texts.jsonl --endpoint /v1/embeddings --window 2h",
    )
)
def create(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Requests, a line of JSON each.", show_default=False)],
    *,
    endpoint: Annotated[
        str | None,
        typer.Option("--endpoint", help="The route that answers each line. \\[default: what the first line says]"),
    ] = None,
    window: Annotated[str, typer.Option("--window", help="When it expires: whole hours, 1h to 168h.")] = "24h",
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", metavar="KEY=VALUE", help="Yours; may be repeated.")
    ] = None,
    idempotency_key: Annotated[
        str | None,
        typer.Option(
            "--idempotency-key",
            metavar="KEY",
            help="The same command with the same key gives the same batch, for 24 hours. \\[default: a new one]",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end.")] = False,
    output: OutputOption = None,
    errors: ErrorsOption = None,
    timeout: TimeoutOption = None,
    url: UrlOption = LOCAL_URL,
    api_key: ApiKeyOption = None,
    retry_for: RetryOption = RETRY_FOR_S,
    as_json: JsonOption = False,
) -> None:
    """Send a file and have it answered. Prints the batch's id."""
    from service.cli.batches.files import endpoint_of, start

    if (output or errors) and not wait:
        fail("--output and --errors go with --wait; later: anyclass batches download")
    if as_json and Path("-") in (output, errors):
        fail("--json and the results cannot both go to the standard output")
    pairs = _pairs(metadata or [])
    service = service_at(url, api_key, retry_for_s=retry_for)

    async def work() -> int:
        async with service:
            named = await endpoint_of(file)
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

    finish(work())


@app.command("list", epilog=examples("anyclass batches list", "anyclass batches list --limit 5 --json"))
def list_batches(
    *,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many, the newest first.")] = 20,
    url: UrlOption = LOCAL_URL,
    api_key: ApiKeyOption = None,
    retry_for: RetryOption = RETRY_FOR_S,
    as_json: JsonOption = False,
) -> None:
    """The batches, the newest first."""
    service = service_at(url, api_key, retry_for_s=retry_for)

    async def work() -> int:
        found: list[dict[str, Any]] = []
        more = True
        async with service:
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

    finish(work())


@app.command(epilog=examples("anyclass batches status batch_0199…"))
def status(
    batch: BatchArgument,
    *,
    url: UrlOption = LOCAL_URL,
    api_key: ApiKeyOption = None,
    retry_for: RetryOption = RETRY_FOR_S,
    as_json: JsonOption = False,
) -> None:
    """How far a batch is."""
    service = service_at(url, api_key, retry_for_s=retry_for)

    async def work() -> int:
        async with service:
            print_batch(await service.json("GET", _path(batch), MEMBERS), as_json=as_json)
        return OK

    finish(work())


@app.command(
    epilog=examples("anyclass batches wait batch_0199…", "anyclass batches wait batch_0199… --output answers.jsonl")
)
def wait(
    batch: BatchArgument,
    *,
    output: OutputOption = None,
    errors: ErrorsOption = None,
    timeout: TimeoutOption = None,
    url: UrlOption = LOCAL_URL,
    api_key: ApiKeyOption = None,
    retry_for: RetryOption = RETRY_FOR_S,
) -> None:
    """Wait, with a bar, for the end of a batch. Ends with 0 only where every line was answered."""
    service = service_at(url, api_key, retry_for_s=retry_for)

    async def work() -> int:
        async with service:
            return await _wait(service, batch, timeout, output, errors)

    finish(work())


@app.command(epilog=examples("anyclass batches cancel batch_0199…"))
def cancel(
    batch: BatchArgument,
    *,
    url: UrlOption = LOCAL_URL,
    api_key: ApiKeyOption = None,
    retry_for: RetryOption = RETRY_FOR_S,
    as_json: JsonOption = False,
) -> None:
    """Cancel a batch. What has been answered is kept."""
    service = service_at(url, api_key, retry_for_s=retry_for)

    async def work() -> int:
        async with service:
            print_batch(await service.json("POST", f"{_path(batch)}/cancel", MEMBERS), as_json=as_json, short=True)
        return OK

    finish(work())


@app.command(
    epilog=examples(
        "anyclass batches download batch_0199… > answers.jsonl",
        "anyclass batches download batch_0199… -o answers.jsonl --errors errors.jsonl",
    )
)
def download(
    batch: BatchArgument,
    *,
    output: OutputOption = None,
    errors: ErrorsOption = None,
    url: UrlOption = LOCAL_URL,
    api_key: ApiKeyOption = None,
    retry_for: RetryOption = RETRY_FOR_S,
) -> None:
    """Fetch the answers of a batch that has ended, and the lines that failed; the answers to the standard output."""
    service = service_at(url, api_key, retry_for_s=retry_for)

    async def work() -> int:
        async with service:
            found = await service.json("GET", _path(batch), MEMBERS)
            if found["status"] not in ENDED:
                say(f"{batch} is still {found['status']}; wait for it: anyclass batches wait {batch}")
                return FAILED
            target = Path("-") if output is None and errors is None else output
            await _fetch(service, found, target, errors)
        return OK

    finish(work())


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
    from service.cli.remote.polling import wait_for

    batch = await wait_for(
        lambda: service.json("GET", _path(batch_id), MEMBERS), standing_of, noun="lines", timeout_s=timeout_s
    )
    await _fetch(service, batch, output, errors)
    # Where the answers go to the standard output nothing else does.
    if Path("-") not in (output, errors):
        print_batch(batch, as_json=as_json, short=True)
    faults = (batch["errors"] or {"data": []})["data"]
    for fault in faults[:_SHOWN_FAULTS]:
        line = "" if fault["line"] is None else f"line {fault['line']}: "
        say(f"{line}{fault['message']}")
    if len(faults) > _SHOWN_FAULTS:
        say(f"and {len(faults) - _SHOWN_FAULTS} more; see all of them: anyclass batches status {batch['id']}")
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
