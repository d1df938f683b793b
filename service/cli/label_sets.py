"""`anyclass label-sets`: named label sets that a service keeps."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

import typer

from service.cli.options import (
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
    from service.cli.remote.polling import Standing

_PAGE: Final = 1_000
_LISTED: Final = ("label_sets", "next")
_MEMBERS: Final = ("name", "version", "status", "progress", "label_count", "templates", "written", "models")

app = typer.Typer(
    help="Label sets: labels that a service keeps under a name, computed once.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The set's name.", show_default=False)]
IfMatchOption = Annotated[
    str | None,
    typer.Option(
        "--if-match",
        metavar="VERSION",
        help="Only where the set is in this version (see show); * is any.",
    ),
]


@app.command("list", epilog=examples("anyclass label-sets list", "anyclass label-sets list --json | jq -r .[].name"))
def list_sets(
    *,
    url: UrlOption = LOCAL_URL,
    api_key: ApiKeyOption = None,
    retry_for: RetryOption = RETRY_FOR_S,
    as_json: JsonOption = False,
) -> None:
    """The sets there are, by name."""
    service = service_at(url, api_key, retry_for_s=retry_for)

    async def work() -> int:
        found: list[dict[str, Any]] = []
        after: str | None = ""
        async with service:
            while after is not None:
                page = await service.json("GET", "/v1/label-sets", _LISTED, params={"after": after, "limit": _PAGE})
                found += page["label_sets"]
                after = page["next"]
        if as_json:
            print_json(found)
        else:
            _print_table(found)
        return OK

    finish(work())


@app.command(epilog=examples("anyclass label-sets show animals", "anyclass label-sets show animals --labels"))
def show(
    name: NameArgument,
    *,
    labels: Annotated[bool, typer.Option("--labels", help="Print the labels, one a line, and nothing else.")] = False,
    url: UrlOption = LOCAL_URL,
    api_key: ApiKeyOption = None,
    retry_for: RetryOption = RETRY_FOR_S,
    as_json: JsonOption = False,
) -> None:
    """How a set stands: status, progress, version. With --json the whole answer, with its labels where asked for."""
    service = service_at(url, api_key, retry_for_s=retry_for)

    async def work() -> int:
        async with service:
            params = {"include": "labels"} if labels else {}
            status = await service.json("GET", _path(name), (*_MEMBERS, *params.values()), params=params)
        if as_json:
            print_json(status)
        elif labels:
            for each in status["labels"]:
                sys.stdout.write((each if isinstance(each, str) else each["label"]) + "\n")
        else:
            _print_status(status)
        return OK

    finish(work())


@app.command(
    epilog=examples(
        "anyclass label-sets put animals animals.txt",
        "anyclass label-sets put pets --labels cat,dog --templates 'a pet, a {}.'",
        "anyclass label-sets put animals animals.json --wait",
        "anyclass label-sets put animals animals.txt --if-match 0199a2b4c6d8",
    )
)
def put(
    name: NameArgument,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="A label on each line; or JSON: a list, or an object with labels, their descriptions and templates, "
            "as the service takes it. - is the standard input.",
            show_default=False,
        ),
    ] = None,
    *,
    labels: Annotated[
        list[str] | None, typer.Option("--labels", help="Labels with commas between them; may be repeated.")
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option("--templates", help="Name of a template set, or a template with {}; templates may be repeated."),
    ] = None,
    if_match: IfMatchOption = None,
    new: Annotated[bool, typer.Option("--new", help="Only where there is no set of that name yet.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is computed.")] = False,
    timeout: TimeoutOption = None,
    url: UrlOption = LOCAL_URL,
    api_key: ApiKeyOption = None,
    retry_for: RetryOption = RETRY_FOR_S,
    as_json: JsonOption = False,
) -> None:
    """Write a set. A small one is ready at once; a large one is computed in the background."""
    from service.cli.inputs import InputError, label_set_of, templates_of

    if not labels and file is None:
        fail("no labels; give a file, or --labels a,b,c")
    if new and if_match is not None:
        fail("--new and --if-match contradict each other")
    try:
        body = label_set_of(labels or [], file)
    except InputError as exc:
        fail(str(exc))
    if templates:
        chosen = templates_of(templates)
        body["templates"] = chosen if isinstance(chosen, str) else list(chosen)
    headers = _condition(if_match) | ({"If-None-Match": "*"} if new else {})
    service = service_at(url, api_key, retry_for_s=retry_for)

    async def work() -> int:
        async with service:
            status = await service.json("PUT", _path(name), _MEMBERS, json=body, headers=headers)
            if wait:
                status = await _ended(service, name, timeout)
        if as_json:
            print_json(status)
            return FAILED if status["status"] == "failed" else OK
        return _print_result(status)

    finish(work())


@app.command(epilog=examples("anyclass label-sets wait animals", "anyclass label-sets wait animals --timeout 600"))
def wait(
    name: NameArgument,
    *,
    timeout: TimeoutOption = None,
    url: UrlOption = LOCAL_URL,
    api_key: ApiKeyOption = None,
    retry_for: RetryOption = RETRY_FOR_S,
) -> None:
    """Wait, with a bar, until a set is computed. Ends with 1 where it cannot be, or not in time."""
    service = service_at(url, api_key, retry_for_s=retry_for)

    async def work() -> int:
        async with service:
            return _print_result(await _ended(service, name, timeout))

    finish(work())


@app.command(epilog=examples("anyclass label-sets delete animals"))
def delete(
    name: NameArgument,
    *,
    if_match: IfMatchOption = None,
    url: UrlOption = LOCAL_URL,
    api_key: ApiKeyOption = None,
    retry_for: RetryOption = RETRY_FOR_S,
) -> None:
    """Delete a set, at once."""
    service = service_at(url, api_key, retry_for_s=retry_for)

    async def work() -> int:
        async with service:
            await service.send("DELETE", _path(name), headers=_condition(if_match))
        sys.stdout.write(f"{name} is deleted.\n")
        return OK

    finish(work())


def _path(name: str) -> str:
    return f"/v1/label-sets/{quote(name, safe='')}"


def _condition(version: str | None) -> dict[str, str]:
    """The header that asks for a version, as `show` prints it or in the quotes of an ETag."""
    if version is None:
        return {}
    if not version.isascii() or not version.isprintable():
        fail("--if-match takes a version as show prints it")
    return {"If-Match": version if version == "*" else f'"{version.strip(chr(34))}"'}


async def _ended(service: "Service", name: str, timeout_s: float | None) -> dict[str, Any]:
    from service.cli.remote.polling import wait_for

    return await wait_for(
        lambda: service.json("GET", _path(name), _MEMBERS), _standing, noun="labels", timeout_s=timeout_s
    )


def _standing(status: dict[str, Any]) -> "Standing":
    from service.cli.remote.polling import Standing

    progress = status["progress"]
    return Standing(status["status"] != "computing", f"computing {status['name']}", progress["done"], progress["total"])


def _print_result(status: dict[str, Any]) -> int:
    """Say how a set stands after it was written or waited for; the exit code of that."""
    name, count = status["name"], status["label_count"]
    if status["status"] == "failed":
        for model in status["models"]:
            if model.get("reason"):
                say(f"{name} cannot be computed for the model {model['model']}: {model['reason']}")
        return FAILED
    labels = f"{count:,} {'label' if count == 1 else 'labels'}, version {status['version']}"
    if status["status"] == "ready":
        sys.stdout.write(f"{name} is ready: {labels}.\n")
    else:
        sys.stdout.write(f"{name} is being computed: {labels}. Follow it: anyclass label-sets wait {name}\n")
    return OK


def _print_status(status: dict[str, Any]) -> None:
    from service.cli.console.rendering import print_fields

    progress, templates = status["progress"], status["templates"]
    fields = {
        "name": status["name"],
        "status": status["status"],
        "labels": f"{status['label_count']:,}",
        "templates": templates if isinstance(templates, str) else "\n".join(templates),
        "written": status["written"],
        "version": status["version"],
        "progress": f"{progress['done']:,} of {progress['total']:,}",
    }
    for model in status["models"]:
        reason = f": {model['reason']}" if model.get("reason") else ""
        fields[f"model {model['model']}"] = f"{model['status']}, {model['done']:,} of {model['total']:,}{reason}"
    print_fields(fields)


def _print_table(found: list[dict[str, Any]]) -> None:
    from service.cli.console.rendering import print_table

    if not found:
        say_none = "There are no label sets. Write one: anyclass label-sets put NAME FILE\n"
        sys.stderr.write(say_none)
        return
    rows = [
        (
            each["name"],
            each["status"],
            f"{each['label_count']:,}",
            f"{each['progress']['done']:,}/{each['progress']['total']:,}",
            each["written"],
            each["version"],
        )
        for each in found
    ]
    print_table(("NAME", "STATUS", "LABELS", "COMPUTED", "WRITTEN", "VERSION"), rows, right=(2, 3))
