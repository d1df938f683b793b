import importlib
import json
import pkgutil
from collections.abc import Iterator

import pytest
from starlette.responses import Response

import service
from service import errors
from service.api.middleware.request_context import CLIENT_GONE, GONE_SLUG
from service.api.problems import table
from service.api.problems.protocol_forms import render_error
from tests.support.places import ROOT

DOCS = ROOT / "docs" / "api.md"


def subclasses(cls: type[errors.AnyclassError]) -> Iterator[type[errors.AnyclassError]]:
    """Yield a class and all below it."""
    yield cls
    for sub in cls.__subclasses__():
        yield from subclasses(sub)


def all_errors() -> list[type[errors.AnyclassError]]:
    """Return every error class of the service, wherever it is defined."""
    for module in pkgutil.walk_packages(service.__path__, "service."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return [cls for cls in subclasses(errors.AnyclassError) if cls.__module__.startswith("service.")]


def test_every_error_is_in_the_table() -> None:
    """Each exception of the service, wherever it is defined, has a row of its own: none is a bare 500 by oversight."""
    assert [] == [cls.__name__ for cls in all_errors() if cls not in table.KINDS]


def test_every_problem_is_documented() -> None:
    """docs/api.md lists each problem type with its status."""
    kinds = [*table.KINDS.values(), table.NOT_FOUND, table.METHOD_NOT_ALLOWED, table.BAD_HTTP]
    text = DOCS.read_text("utf-8")
    missing = [kind.slug for kind in kinds if f"| `{kind.slug}` | {kind.status} |" not in text]
    assert [] == missing


def test_the_status_of_a_client_that_left_is_documented() -> None:
    """It is in no answer, but in the log and, by its name, in the metrics."""
    text = DOCS.read_text("utf-8")
    assert f"status {CLIENT_GONE}" in text
    assert f"`{GONE_SLUG}`" in text


def test_one_slug_has_one_meaning() -> None:
    """Where classes share a slug they share title and status too."""
    by_slug: dict[str, table.Kind] = {}
    for kind in table.KINDS.values():
        assert kind == by_slug.setdefault(kind.slug, kind)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidLabels("x"), 422),
        (errors.UnsupportedImageFormat("x"), 415),
        (errors.PayloadTooLarge("x"), 413),
        (errors.TooManyLabels("x"), 413),
        (errors.MalformedRequest("x"), 400),
        (errors.UnknownModel("x"), 404),
        (errors.Overloaded("x", 1.0), 429),
        (errors.NotReady("x"), 503),
        (errors.DeadlineExceeded("x"), 503),
        (errors.NonFiniteOutput("x"), 500),
    ],
)
def test_statuses(error: errors.AnyclassError, status: int) -> None:
    """Each error has the status that the interface promises."""
    assert status == table.problem_of(error, "id")["status"]


def answer_for(error: errors.AnyclassError) -> Response:
    """Return the service's own answer for `error`."""
    return render_error("/v1/classify", table.problem_of(error, "r-1"), table.headers_of(error))


def test_problem_has_the_members_of_rfc_9457_and_the_request_id() -> None:
    """Type, title, status, detail and request id, in an answer of the right media type."""
    answer = answer_for(errors.UnknownModel("There is no such model."))
    assert "application/problem+json" == answer.headers["content-type"]
    assert {
        "type": "urn:anyclass:problem:unknown-model",
        "title": "No such model is served here",
        "status": 404,
        "detail": "There is no such model.",
        "request_id": "r-1",
    } == json.loads(bytes(answer.body))


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (2.1, "3")])
def test_overload_says_when_to_come_again(seconds: float, header: str) -> None:
    """Retry-After is in whole seconds, rounded up, and never 0: a client would come again at once."""
    answer = answer_for(errors.Overloaded("busy", seconds))
    assert header == answer.headers["retry-after"]


def test_a_lone_surrogate_in_a_detail_does_not_break_the_answer() -> None:
    """A detail that quotes what UTF-8 cannot hold is still a valid JSON document."""
    answer = answer_for(table.FieldErrors([("\ud800", "is \udfff bad")]))
    assert {"field": "?", "detail": "is ? bad"} == json.loads(bytes(answer.body))["errors"][0]
