"""The OpenAPI document: complete, sound in itself, and true.

That no other answer is given than those in it is what `test_schemathesis.py` looks for.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema_rs
import pytest

from service.api.documentation.document import operations_of
from service.api.documentation.responses import error_responses
from service.api.problems.table import KINDS, MEDIA_TYPE
from service.app import create_app
from service.errors import AnyclassError, LabelSetComputing, NotReady, Overloaded, RateLimited, StateUnavailable
from service.settings import Settings
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle

MAX_BODY = 20_000
KEY = "a-key-for-these-tests"
JSON = "application/json"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """Return the document of a service that needs no key."""
    return create_app(Settings()).openapi()


def media(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the place, the media type and the description of every request and response body."""
    for path, method, operation in operations_of(document):
        for kind, described in operation.get("requestBody", {"content": {}})["content"].items():
            yield f"{method} {path}", kind, described
        for status, response in operation["responses"].items():
            for kind, described in response.get("content", {}).items():
                yield f"{method} {path} {status}", kind, described


def examples_of(document: dict[str, Any], described: dict[str, Any]) -> list[Any]:
    """Return the examples of a body: its own, and those of the schema that it refers to."""
    found = [described["example"]] if "example" in described else []
    found += [example["value"] for example in described.get("examples", {}).values()]
    name = described["schema"].get("$ref", "").removeprefix("#/components/schemas/")
    return found + (document["components"]["schemas"][name].get("examples", []) if name else [])


def is_binary(described: dict[str, Any]) -> bool:
    """Return whether a body is bytes, of which JSON can hold no example."""
    return bool(described["schema"].get("format") == "binary")


def test_every_body_has_an_example_that_fits_its_schema(document: dict[str, Any]) -> None:
    """Requests, answers and errors, in each form that a body may have."""
    described = list(media(document))
    assert len(described) > 250
    for where, kind, each in described:
        if is_binary(each):
            continue
        examples = examples_of(document, each)
        assert examples, f"{where} {kind}"
        validator = jsonschema_rs.validator_for({**each["schema"], "components": document["components"]})
        for example in examples:
            assert [] == [f"{where} {kind}: {error.message}" for error in validator.iter_errors(example)]


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    """Schemas, headers and examples; and every operation to which a link leads is there."""
    for reference in set(re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document))):
        part: Any = document
        for name in reference.split("/"):
            assert name in part, reference
            part = part[name]
    linked = set(re.findall(r'"operationId": "([^"]+)", "(?:parameters|requestBody)": \{"', json.dumps(document)))
    assert {"retrieve_file", "create_batch", "cancel_batch"} <= linked
    assert linked <= {operation["operationId"] for _, _, operation in operations_of(document)}


def test_operations_have_names_for_generated_clients(document: dict[str, Any]) -> None:
    """Each its own, and short."""
    names = [operation["operationId"] for _, _, operation in operations_of(document)]
    assert len(names) == len(set(names))
    assert [] == [name for name in names if not re.fullmatch(r"[a-z_]{2,24}", name)]
    tags = {tag["name"] for tag in document["tags"]}
    assert tags == {tag for _, _, operation in operations_of(document) for tag in operation["tags"]}


def test_every_operation_and_parameter_is_described(document: dict[str, Any]) -> None:
    """No operation has a default text of FastAPI."""
    for path, method, operation in operations_of(document):
        assert operation["summary"], f"{method} {path}"
        assert operation["description"], f"{method} {path}"
        assert [] == [each["name"] for each in operation.get("parameters", ()) if not each.get("description")]
        assert "Successful Response" not in [each["description"] for each in operation["responses"].values()]
    assert "HTTPValidationError" not in json.dumps(document)


@pytest.mark.parametrize("error", KINDS)
def test_every_error_can_be_documented(error: type[AnyclassError]) -> None:
    """A route may name any error of the table; the response has its status, code, title and headers."""
    kind = KINDS[error]
    response = error_responses("/v1/classify", error)[kind.status]
    assert f"`{kind.type}`: {kind.title}" in response["description"]
    assert {"$ref": "#/components/schemas/Problem"} == response["content"][MEDIA_TYPE]["schema"]
    waiting = issubclass(error, Overloaded | RateLimited | LabelSetComputing | NotReady | StateUnavailable)
    assert not waiting or "Retry-After" in response["headers"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """Run a service with low limits, where every route except the probe of the tests needs a key."""
    folder = tmp_path_factory.mktemp("openapi")
    env = {
        "ANYCLASS_API_KEYS": KEY,
        "ANYCLASS_OPEN_PATHS": "/readyz,/openapi.json",
        "ANYCLASS_STATE_URL": (folder / "state").as_uri(),
        "ANYCLASS_MAX_BODY_BYTES": str(MAX_BODY),
        "ANYCLASS_MAX_FILE_BYTES": str(MAX_BODY),
        "ANYCLASS_MAX_TOTAL_FILE_BYTES": "1000",
        "ANYCLASS_MAX_LABEL_SETS": "2",
        "ANYCLASS_JOB_WORKERS": "0",
    }
    with http_server(write_tiny_bundle(folder / "bundle", name="demo"), folder, env=env) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: HttpServer) -> Iterator[httpx.Client]:
    """Return a client with a key."""
    with httpx.Client(base_url=server.url, headers={"x-api-key": KEY}, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def there(client: httpx.Client) -> dict[str, str]:
    """Return existing values for the parameters of paths."""
    client.put("/v1/label-sets/animals", json={"labels": ["cat", "dog"]}).raise_for_status()
    file_id = client.post("/v1/files", files={"file": b"{}"}, data={"purpose": "batch"}).json()["id"]
    batch = client.post("/v1/batches", json={"input_file_id": file_id, "endpoint": "/v1/classify"}).json()
    (version,) = client.get("/v2/models/demo").json()["versions"]
    return {"name": "animals", "file_id": file_id, "batch_id": batch["id"], "model": "demo", "version": version}


LABELLED = {"labels": ["red"], "model": "nobody"}
ABSENT: dict[str, dict[str, Any]] = {
    "classify": {"json": {"image": "AAAA", **LABELLED}},
    "classify_batch": {"json": {"images": ["AAAA"], **LABELLED}},
    "embeddings": {"json": {"input": "a", "model": "nobody"}},
    "templates": {"params": {"model": "nobody"}},
}
"""Requests for a model that is not served, where its name is not in the path."""
ODD: dict[tuple[str, int], dict[str, Any]] = {
    ("put_label_set", 507): {"path": {"name": "third"}, "json": {"labels": ["a"]}},
    ("put_label_set", 412): {"json": {"labels": ["a"]}, "headers": {"if-none-match": "*"}},
    ("delete_label_set", 412): {"headers": {"if-match": '"x"'}},
    ("get_label_set", 304): {"headers": {"if-none-match": "*"}},
    ("get_label_set", 400): {"headers": {"if-none-match": "x"}},
    ("delete_label_set", 400): {"headers": {"if-match": "x"}},
    ("get_label_set", 422): {"params": {"include": "x"}},
    ("list_label_sets", 422): {"params": {"limit": "0"}},
    ("templates", 422): {"params": {"modle": "x"}},
    ("list_files", 400): {"params": {"limit": "0"}},
    ("list_batches", 400): {"params": {"limit": "0"}},
    ("retrieve_file", 400): {"path": {"file_id": "x" * 101}},
    ("delete_file", 400): {"path": {"file_id": "x" * 101}},
    ("file_content", 400): {"path": {"file_id": "x" * 101}},
    ("retrieve_batch", 400): {"path": {"batch_id": "x" * 101}},
    ("cancel_batch", 400): {"path": {"batch_id": "x" * 101}},
    ("classify_batch", 406): {"headers": {"accept": "text/html"}, "json": {"images": ["AAAA"], "labels": ["a"]}},
    ("delete_file", 409): {},
    ("create_file", 507): {"files": {"file": b"x" * 1_000}, "data": {"purpose": "batch"}},
    ("create_file", 413): {"files": {"file": b"x" * 90_000}, "data": {"purpose": "batch"}},
}
"""Requests for responses that only some routes have, by operation and status."""
NOT_TRIED = {408, 429, 500, 503, 504}
"""The service has to be slow, busy or broken for these."""
ELSEWHERE = {
    # A set that is computed, a key that was used, a batch that has ended: see the tests of label sets and batches.
    ("classify", 409),
    ("classify_batch", 409),
    ("create_file", 409),
    ("create_batch", 409),
    ("cancel_batch", 409),
}


def request_for(operation: str, status: int, content_types: list[str]) -> dict[str, Any]:
    """Return arguments of a request that is answered with `status`; `path` holds parameters of the path."""
    if (operation, status) in ODD:
        return ODD[operation, status]
    kind = JSON if JSON in content_types or not content_types else content_types[0]
    no_such = dict.fromkeys(("name", "file_id", "batch_id", "model"), "no/such")
    answers_by_status: dict[int, dict[str, Any]] = {
        400: {"content": b"{", "headers": {"content-type": kind}},
        401: {"headers": {"x-api-key": ""}},
        404: ABSENT.get(operation, {"path": no_such, **sound(content_types)}),
        413: {"content": b" " * (MAX_BODY + 1), "headers": {"content-type": kind}},
        415: {"content": b"?", "headers": {"content-type": "text/plain"}},
        422: {"content": b"{}", "headers": {"content-type": JSON}},
    }
    return answers_by_status[status]


def sound(content_types: list[str]) -> dict[str, Any]:
    """Return a body if the operation takes one; its content does not matter."""
    return {"content": b"{}", "headers": {"content-type": content_types[0]}} if content_types else {}


def test_every_refusal_can_be_had(client: httpx.Client, there: dict[str, str]) -> None:
    """Every documented 4xx can be produced by a request, and has the documented media type."""
    document = client.get("/openapi.json").json()
    tried = 0
    for path, method, operation in operations_of(document):
        name = operation["operationId"]
        for status in map(int, operation["responses"]):
            untried = status in NOT_TRIED or (name, status) in ELSEWHERE or (name, status) == ("readyz", 401)
            if untried or 200 <= status < 300:
                continue
            asked = dict(request_for(name, status, list(operation.get("requestBody", {}).get("content", ()))))
            filled = path.format(**{**there, **asked.pop("path", {})})
            if (name, status) == ("put_label_set", 507):
                client.put("/v1/label-sets/second", json={"labels": ["a"]}).raise_for_status()
            answer = client.request(method, filled, **asked)
            assert status == answer.status_code, f"{name}: {answer.text}"
            if status != 304:
                (kind,) = operation["responses"][str(status)]["content"]
                assert kind == answer.headers["content-type"]
            tried += 1
    assert tried > 100
