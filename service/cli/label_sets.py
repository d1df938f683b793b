"""`anyclass label-sets`: named label sets that a service keeps."""

import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

import typer

from service.cli.options import JsonOption, TimeoutOption
from service.cli.remote.command import remote_command
from service.cli.reporting import FAILED, OK, fail, print_error, print_json, print_note

if TYPE_CHECKING:
    from service.cli.remote.client import Service
    from service.cli.remote.polling import PollStatus

_PAGE: Final = 1_000
_PAGE_MEMBERS: Final = ("label_sets", "next")
_MEMBERS: Final = ("name", "version", "status", "progress", "label_count", "templates", "written", "models")

app = typer.Typer(
    help="Label sets: labels that a service keeps under a name, computed once.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the set.", show_default=False)]
IfMatchOption = Annotated[
    str | None,
    typer.Option("--if-match", metavar="VERSION", help="Only if the set is in this version (see show); * is any."),
]


@remote_command(app, "list", "anyclass label-sets list", "anyclass label-sets list --json | jq -r .[].name")
async def list_sets(service: "Service", *, as_json: JsonOption = False) -> int:
    """List the sets by name."""
    found: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        page = await service.json("GET", "/v1/label-sets", _PAGE_MEMBERS, params={"after": after, "limit": _PAGE})
        found += page["label_sets"]
        after = page["next"]
    if as_json:
        print_json(found)
    else:
        _print_table(found)
    return OK


@remote_command(app, "show", "anyclass label-sets show animals", "anyclass label-sets show animals --labels")
async def show(
    service: "Service",
    name: NameArgument,
    *,
    labels: Annotated[bool, typer.Option("--labels", help="Print only the labels, one a line.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Show status, progress and version of a set. With --json the whole answer, with its labels if asked for."""
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


@remote_command(
    app,
    "put",
    "anyclass label-sets put animals animals.txt",
    "anyclass label-sets put pets --labels cat,dog --templates 'a pet, a {}.'",
    "anyclass label-sets put animals animals.json --wait",
    "anyclass label-sets put animals animals.txt --if-match 0199a2b4c6d8",
)
def put(
    service: "Service",
    name: NameArgument,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]",
            help="A label on each line; or JSON: a list, or an object with labels, their descriptions and templates, "
            "as in the HTTP API. - is the standard input.",
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
    new: Annotated[bool, typer.Option("--new", help="Only if no set has this name yet.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is computed.")] = False,
    timeout: TimeoutOption = None,
    as_json: JsonOption = False,
) -> Coroutine[Any, Any, int]:
    """Write a set. A small one is ready at once; a large one is computed in the background."""
    from service.cli.inputs import InputError, parse_templates, read_label_set

    if not labels and file is None:
        fail("no labels; give a file, or --labels a,b,c")
    if new and if_match is not None:
        fail("--new and --if-match contradict each other")
    try:
        body = read_label_set(labels or [], file)
    except InputError as exc:
        fail(str(exc))
    if templates:
        chosen = parse_templates(templates)
        body["templates"] = chosen if isinstance(chosen, str) else list(chosen)
    headers = _condition(if_match) | ({"If-None-Match": "*"} if new else {})

    async def work() -> int:
        status = await service.json("PUT", _path(name), _MEMBERS, json=body, headers=headers)
        for warning in status.get("warnings", ()):
            print_note(f"Warning: {warning['message']}")
        if wait:
            status = await _poll(service, name, timeout)
        if as_json:
            print_json(status)
            return FAILED if status["status"] == "failed" else OK
        return _print_result(status)

    return work()


@remote_command(app, "wait", "anyclass label-sets wait animals", "anyclass label-sets wait animals --timeout 600")
def wait(service: "Service", name: NameArgument, *, timeout: TimeoutOption = None) -> Coroutine[Any, Any, int]:
    """Wait until a set is computed, with a progress bar. Exits with 1 if it fails, or not in time."""
    return _wait(service, name, timeout)


@remote_command(app, "delete", "anyclass label-sets delete animals")
async def delete(service: "Service", name: NameArgument, *, if_match: IfMatchOption = None) -> int:
    """Delete a set, at once."""
    await service.send("DELETE", _path(name), headers=_condition(if_match))
    sys.stdout.write(f"{name} is deleted.\n")
    return OK


def _path(name: str) -> str:
    return f"/v1/label-sets/{quote(name, safe='')}"


def _condition(version: str | None) -> dict[str, str]:
    """Return the header that requires a version, given as `show` prints it or in the quotes of an ETag."""
    if version is None:
        return {}
    if not version.isascii() or not version.isprintable():
        fail("--if-match takes a version as show prints it")
    return {"If-Match": version if version == "*" else f'"{version.strip(chr(34))}"'}


async def _poll(service: "Service", name: str, timeout_s: float | None) -> dict[str, Any]:
    from service.cli.remote.polling import poll

    return await poll(
        lambda: service.json("GET", _path(name), _MEMBERS), _poll_status, noun="labels", timeout_s=timeout_s
    )


async def _wait(service: "Service", name: str, timeout_s: float | None) -> int:
    return _print_result(await _poll(service, name, timeout_s))


def _poll_status(status: dict[str, Any]) -> "PollStatus":
    from service.cli.remote.polling import PollStatus

    progress = status["progress"]
    ended = status["status"] != "computing"
    return PollStatus(ended, f"computing {status['name']}", progress["done"], progress["total"])


def _print_result(status: dict[str, Any]) -> int:
    """Print the status of a set after a write or a wait, and return the exit code."""
    name, count = status["name"], status["label_count"]
    if status["status"] == "failed":
        for model in status["models"]:
            if model.get("reason"):
                print_error(f"{name} cannot be computed for the model {model['model']}: {model['reason']}")
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
        sys.stderr.write("No label sets. Write one: anyclass label-sets put NAME FILE\n")
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
