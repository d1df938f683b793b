"""The interface as clients meet it: a real process, real connections."""

import base64
import hashlib
import io
import json
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from service.api.documentation.request_bodies import BATCH_EXAMPLES, EXAMPLES
from service.api.native.schemas import BatchAnswer, BatchResult, ClassifyAnswer, ModelsAnswer, TemplatesAnswer
from service.api.problems.schemas import Problem
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle

MAX_BODY = 200_000
SECRET_LABEL = "label-that-must-not-be-logged"


def picture(colour: tuple[int, int, int]) -> bytes:
    """Make a PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED = picture((255, 0, 0))
GREEN = picture((0, 255, 0))
RED_64 = base64.b64encode(RED).decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """One process for all tests of this module."""
    folder = tmp_path_factory.mktemp("http")
    bundle = write_tiny_bundle(folder / "bundle", aliases=("acme/tiny",))
    with http_server(bundle, folder, env={"ANYCLASS_MAX_BODY_BYTES": str(MAX_BODY)}) as running:
        yield running


@pytest.fixture
def client(server: HttpServer) -> Iterator[httpx.Client]:
    """A client of that process."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def problem_of(answer: httpx.Response) -> dict[str, Any]:
    """Check that an answer is a problem, and return it."""
    assert "application/problem+json" == answer.headers["content-type"]
    body: dict[str, Any] = answer.json()
    Problem.model_validate(body)
    assert answer.status_code == body["status"]
    assert answer.headers["x-request-id"] == body["request_id"]
    return body


def test_the_three_forms_have_one_answer(client: httpx.Client) -> None:
    """JSON, a form and the raw picture are the same request."""
    labels = ["red", "green", "blue"]
    answers = [
        client.post("/v1/classify", json={"image": RED_64, "labels": labels, "model": "acme/tiny"}),
        client.post("/v1/classify", files={"image": ("a.png", RED)}, data={"labels": labels}),
        client.post("/v1/classify", content=RED, headers={"content-type": "image/png"}, params={"labels": labels}),
    ]
    assert [200] * 3 == [answer.status_code for answer in answers]
    first, *others = [ClassifyAnswer.model_validate(answer.json()) for answer in answers]
    assert "tiny" == first.model
    assert "red" == first.predictions[0].label
    assert first.predictions[0].score > 0.9
    assert [first.predictions] * 2 == [other.predictions for other in others]


def test_the_answer_has_exactly_the_documented_members(client: httpx.Client) -> None:
    """The answer has exactly the members of its schema."""
    body = client.post("/v1/classify", json={"image": RED_64, "labels": ["  red  rose ", "mud"], "top_k": 1}).json()
    assert ["model", "revision", "predictions", "usage"] == list(body)
    assert ["  red  rose "] == [each["label"] for each in body["predictions"]]
    assert 0.5 < body["predictions"][0]["score"] < 1
    assert ["labels", "labels_cached"] == list(body["usage"])


def test_labels_are_cached_from_one_request_to_the_next(client: httpx.Client) -> None:
    """The usage says what the text encoder was spared."""
    request = {"image": RED_64, "labels": ["once upon", "a time"]}
    first, second = (client.post("/v1/classify", json=request).json()["usage"] for _ in range(2))
    assert {"labels": 2, "labels_cached": 0} == first
    assert {"labels": 2, "labels_cached": 2} == second


def test_server_timing(client: httpx.Client) -> None:
    """Each stage's milliseconds are in a header that browsers understand."""
    answer = client.post("/v1/classify", json={"image": RED_64, "labels": ["red"]})
    stages = re.findall(r"([a-z]+);dur=(\d+\.\d\d)", answer.headers["server-timing"])
    assert ["decode", "queue", "text", "image", "score", "total"] == [name for name, _ in stages]
    assert float(dict(stages)["total"]) > 0


@pytest.mark.parametrize(("given", "kept"), [("job-7/a_b.c:d+e=@", True), ("x" * 128, True), ("x" * 129, False),
                                             ("a b", False), ('a"b', False), ("", False)])  # fmt: skip
def test_request_id(client: httpx.Client, given: str, kept: bool) -> None:
    """A sane id of the client's is taken over; any other is replaced."""
    answer = client.get("/nothing", headers={"x-request-id": given})
    assert kept == (given == problem_of(answer)["request_id"])


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/nothing", 404, "not-found"),
        ("POST", "/v1/classify/", 404, "not-found"),
        ("GET", "/v1/templates?model=nobody", 404, "unknown-model"),
        ("GET", "/v1/templates?modle=tiny", 422, "invalid-request"),
        ("GET", "/v1/classify", 405, "method-not-allowed"),
        ("DELETE", "/livez", 405, "method-not-allowed"),
        ("POST", "/docs", 405, "method-not-allowed"),
        ("GET", "/docs/assets/nothing.js", 404, "not-found"),
    ],
)
def test_routing_errors_are_problems(client: httpx.Client, method: str, path: str, status: int, slug: str) -> None:
    """What no route has seen is answered in the same form."""
    answer = client.request(method, path)
    body = problem_of(answer)
    assert (status, f"urn:anyclass:problem:{slug}") == (body["status"], body["type"])
    assert (status == 405) == ("allow" in answer.headers)


@pytest.mark.parametrize(
    ("fields", "status", "slug"),
    [
        ({"image": "http://127.0.0.1/x.png", "labels": ["a"]}, 422, "invalid-image"),
        ({"image": base64.b64encode(RED[:60]).decode(), "labels": ["a"]}, 422, "invalid-image"),
        ({"image": base64.b64encode(b"%!PS-Adobe").decode(), "labels": ["a"]}, 415, "unsupported-image-format"),
        ({"image": RED_64, "labels": []}, 422, "invalid-labels"),
        ({"image": RED_64, "labels": ["a", " a"]}, 422, "invalid-labels"),
        ({"image": RED_64, "labels": ["\ud800"]}, 422, "invalid-labels"),
        ({"image": RED_64, "labels": ["a b " * 200]}, 422, "prompt-too-long"),
        ({"image": RED_64, "labels": ["a"], "templates": "nothing"}, 422, "invalid-templates"),
        ({"image": RED_64, "labels": ["a"], "templates": ["no gap"]}, 422, "invalid-templates"),
        ({"image": RED_64, "labels": ["a"], "scoring": "sigmoid"}, 422, "invalid-scoring"),
        ({"image": RED_64, "labels": ["a"], "model": "nobody"}, 404, "unknown-model"),
        ({"image": RED_64, "labels": ["a"], "lables": ["b"]}, 422, "invalid-request"),
        ({"image": RED_64, "labels": [str(n) for n in range(10_001)]}, 413, "too-many-labels"),
    ],
)
def test_what_is_wrong_with_a_request(client: httpx.Client, fields: dict[str, Any], status: int, slug: str) -> None:
    """Each mistake of a client has its own problem type, and none is a 5xx."""
    body = problem_of(client.post("/v1/classify", content=json.dumps(fields).encode(), headers=JSON))
    assert (status, f"urn:anyclass:problem:{slug}") == (body["status"], body["type"])


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/v1/files", "GET, HEAD, POST"),
        ("POST", "/v1/label-sets/colours", "DELETE, GET, HEAD, PUT"),
        ("PUT", "/", "GET, HEAD, POST"),
        ("POST", "/docs/assets/favicon.png", "GET, HEAD"),
    ],
)
def test_all_methods_of_a_path_are_told(client: httpx.Client, method: str, path: str, allowed: str) -> None:
    """Whichever of its routes the framework looked at first."""
    answer = client.request(method, path)
    assert (405, allowed) == (answer.status_code, answer.headers["allow"])


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("POST", "/v1/classify/", "/v1/classify"),
        ("POST", "//v1/classify", "/v1/classify"),
        ("GET", "/docs/", "/docs"),
        ("GET", "/v1//templates/", "/v1/templates"),
        ("POST", "/v1/embeddings/", "/v1/embeddings"),
    ],
)
def test_a_slash_too_many_is_told(client: httpx.Client, method: str, path: str, meant: str) -> None:
    """In the form of the path's protocol. A redirect would lose the body of many clients."""
    answer = client.request(method, f"{str(client.base_url).rstrip('/')}{path}")
    assert 404 == answer.status_code
    assert f"No route matches {path}; leave out the slash that is too many: {meant}." in answer.text


def test_a_path_without_a_route_leads_to_the_documentation(client: httpx.Client) -> None:
    """With a slash at its end too."""
    for path in ("/nothing", "/nothing/"):
        assert f"No route matches {path}; GET /docs shows all routes." == client.get(path).json()["detail"]


OF_ONE_ANSWER = {"date", "x-request-id", "content-length", "server-timing"}
"""Headers that differ between two answers of one route; the length of the metrics does too."""


def test_head_answers_as_get_without_a_body(client: httpx.Client) -> None:
    """On every documented route that takes GET, whatever its status, and on the pages beside them."""
    document = client.get("/openapi.json").json()
    paths = [path for path, item in document["paths"].items() if "get" in item]
    assert len(paths) > 15
    assert not any("head" in item for item in document["paths"].values())
    asset = "/docs/assets/swagger-ui.css"
    for path in [*paths, "/", "/page/page.js", "/docs", "/openapi.json", asset, "/nothing"]:
        url = re.sub(r"\{\w+\}", "nothing", path.replace("{model}", "tiny"))
        get, head = client.get(url), client.head(url)
        assert (get.status_code, b"") == (head.status_code, head.content), url
        expected, found = ({name for name in each.headers if name not in OF_ONE_ANSWER} for each in (get, head))
        assert expected == found, url
    assert 200 == client.head("/livez").status_code
    assert client.get("/livez").headers["content-length"] == client.head("/livez").headers["content-length"]


def test_head_of_a_route_without_get_is_not_allowed(client: httpx.Client) -> None:
    """As GET of it is."""
    answer = client.head("/v1/classify")
    assert (405, "POST") == (answer.status_code, answer.headers["allow"])


def test_nothing_follows_the_head(server: HttpServer) -> None:
    """Not a byte of a body, which the next answer on the connection would begin with."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")
    assert 1 == answer.count(b"\r\n\r\n")


JSON = {"content-type": "application/json"}


def test_a_body_without_a_length_is_counted(client: httpx.Client) -> None:
    """A chunked body is refused at the limit, and the client still gets the answer."""

    def endless() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x" * 10_000

    answer = client.post("/v1/classify", content=endless(), headers=JSON)
    assert "urn:anyclass:problem:payload-too-large" == problem_of(answer)["type"]


def exchange(server: HttpServer, request: bytes) -> tuple[int, dict[str, Any]]:
    """Send bytes, and return the status and the problem that come back."""
    parts = urlsplit(server.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65_536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"x-content-type-options: nosniff" in head
    return int(head.split()[1]), json.loads(body)


def test_a_length_that_is_too_large_is_refused_unread(server: HttpServer) -> None:
    """An announced 10 GB is refused before anything was sent."""
    head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 10000000000\r\n\r\n"
    assert 413 == exchange(server, head)[0]


@pytest.mark.parametrize(
    "request_", [b"GARBAGE\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", b"\x16\x03\x01\x02\x00"]
)
def test_what_is_not_http_is_a_problem_too(server: HttpServer, request_: bytes) -> None:
    """Errors before routing have the same form and headers, with a request id."""
    status, body = exchange(server, request_)
    assert (400, "urn:anyclass:problem:malformed-http") == (status, body["type"])
    assert body["request_id"]


def test_batch(client: httpx.Client) -> None:
    """Results in order; an image that cannot be read has its own problem and fails no other."""
    images = [RED_64, "http://127.0.0.1/x.png", "AAAA", base64.b64encode(GREEN).decode()]
    answer = client.post("/v1/classify/batch", json={"images": images, "labels": ["red", "green"], "top_k": 1})
    assert 200 == answer.status_code
    assert ["model", "results", "usage"] == list(answer.json())
    body = BatchAnswer.model_validate(answer.json())
    assert [0, 1, 2, 3] == [result.index for result in body.results]
    best = [result.predictions[0].label if result.predictions else None for result in body.results]
    assert ["red", None, None, "green"] == best
    problems = [result.error.type.rpartition(":")[2] if result.error else None for result in body.results]
    assert [None, "invalid-image", "unsupported-image-format", None] == problems
    assert {"index", "error"} == set(answer.json()["results"][1])
    assert 2 == body.usage.labels


def test_batch_of_bad_images_only(client: httpx.Client) -> None:
    """Even where nothing could be classified, each image has its result."""
    body = client.post("/v1/classify/batch", json={"images": ["http://x", "?"], "labels": ["red"]}).json()
    assert [422, 422] == [result["error"]["status"] for result in body["results"]]
    assert "tiny" == body["model"]


def test_batch_as_lines(client: httpx.Client) -> None:
    """With NDJSON each result is a line of its own."""
    files = [("image", ("a.png", RED)), ("image", ("b.txt", b"text")), ("image", ("c.png", GREEN))]
    headers = {"accept": "application/x-ndjson"}
    answer = client.post("/v1/classify/batch", files=files, data={"labels": ["red", "green"]}, headers=headers)
    assert "application/x-ndjson" == answer.headers["content-type"]
    results = [BatchResult.model_validate_json(line) for line in answer.text.splitlines()]
    assert [(0, True), (1, False), (2, True)] == [(each.index, bool(each.predictions)) for each in results]


def test_accept_matters_only_where_there_is_a_choice(client: httpx.Client) -> None:
    """A route with one kind of answer gives it, whatever is accepted (RFC 9110, section 12.5.1, allows that)."""
    headers = {"accept": "text/xml"}
    single = client.post("/v1/classify", json={"image": RED_64, "labels": ["red"]}, headers=headers)
    batch = client.post("/v1/classify/batch", json={"images": [RED_64], "labels": ["red"]}, headers=headers)
    assert (200, "application/json") == (single.status_code, single.headers["content-type"])
    assert 406 == batch.status_code


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("application/json, application/x-ndjson", "application/json"),
        ("application/x-ndjson, application/json;q=0.5", "application/x-ndjson"),
        ("application/*;q=0.1", "application/json"),
        ("text/html", "application/problem+json"),
        ("application/json;q=0", "application/problem+json"),
    ],
)
def test_the_form_of_a_batch_answer_is_the_clients_choice(client: httpx.Client, accept: str, kind: str) -> None:
    """The Accept header decides, with its weights."""
    request = {"images": [RED_64], "labels": ["red"]}
    answer = client.post("/v1/classify/batch", json=request, headers={"accept": accept})
    assert kind == answer.headers["content-type"]


def test_a_batch_that_is_wrong_as_a_whole(client: httpx.Client) -> None:
    """Bad labels are a status of their own, for lines too."""
    for accept in ("application/json", "application/x-ndjson"):
        request = {"images": [RED_64], "labels": ["a", "a"]}
        answer = client.post("/v1/classify/batch", json=request, headers={"accept": accept})
        assert "urn:anyclass:problem:invalid-labels" == problem_of(answer)["type"]


def test_models_say_what_really_runs(client: httpx.Client) -> None:
    """Provider and precision are the engine's, not the configuration's."""
    (model,) = ModelsAnswer.model_validate(client.get("/v1/models").json()).models
    assert ("tiny", ["acme/tiny"], True) == (model.name, model.aliases, model.default)
    assert ("cpu", "fp32") == (model.provider, model.precision)


def test_templates(client: httpx.Client) -> None:
    """The sets can be read before one is named."""
    answer = TemplatesAnswer.model_validate(client.get("/v1/templates", params={"model": "acme/tiny"}).json())
    assert {"default": ["a photo of a {}."], "none": ["{}"]} == answer.templates


def test_probes_and_root(client: httpx.Client) -> None:
    """Alive, ready, and the page, which leads to the documentation."""
    assert {"status": "alive"} == client.get("/livez").json()
    assert {"status": "ready"} == client.get("/readyz").json()
    assert '<a href="docs"' in client.get("/").text


def test_no_answer_may_be_taken_for_another_type(client: httpx.Client) -> None:
    """Answers, pages, files and errors of every origin: a browser keeps to the content type."""
    for path in (
        "/livez",
        "/",
        "/page/page.js",
        "/docs",
        "/docs/assets/favicon.png",
        "/openapi.json",
        "/v1/classify",
        "/nothing",
    ):
        assert ["nosniff"] == client.get(path).headers.get_list("x-content-type-options"), path


def test_the_page_keeps_to_its_own_files(client: httpx.Client) -> None:
    """Its policy names every inline script by its digest; what it loads is its own, and no other page frames it."""
    answer = client.get("/docs")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    scripts = re.findall(r"<script>(.*?)</script>", answer.text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert 1 == len(digests)
    assert ["'self'", *(f"'sha256-{digest}'" for digest in digests)] == policy["script-src"].split()
    assert ("'none'", "'none'") == (policy["default-src"], policy["frame-ancestors"])
    assert "'self'" == policy["connect-src"]
    for source in re.findall(r'(?:src|href)="([^"]+)"', answer.text):
        assert re.match("/[^/]", source)
    assert not re.search(r"<[^>]+\son\w+=", answer.text)  # inline handlers, which the policy forbids


def test_docs_need_no_internet(client: httpx.Client) -> None:
    """The page and everything it loads come from this server."""
    page = client.get("/docs").text
    assert "://" not in page
    for asset in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert 200 == client.get(asset).status_code
    assert 200 == client.get("/openapi.json").status_code


def test_the_documented_examples_work(client: httpx.Client) -> None:
    """What /docs proposes to send is answered with 200."""
    for path, examples in (("/v1/classify", EXAMPLES), ("/v1/classify/batch", BATCH_EXAMPLES)):
        for example in examples.values():
            assert 200 == client.post(path, json=example["value"]).status_code, example["summary"]


def test_openapi_describes_every_form_and_problem(client: httpx.Client) -> None:
    """All content types of a request and of its refusals are documented, with schemas that exist."""
    document = client.get("/openapi.json").json()
    classify = document["paths"]["/v1/classify"]["post"]
    assert {"application/json", "multipart/form-data", "image/*", "application/octet-stream"} == set(
        classify["requestBody"]["content"]
    )
    statuses = {"200", "400", "401", "404", "408", "409", "413", "415", "422", "429", "500", "503"}
    assert statuses == set(classify["responses"])
    assert {"application/problem+json"} == set(classify["responses"]["422"]["content"])
    assert "labels" in {parameter["name"] for parameter in classify["parameters"]}
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    assert {"application/json", "application/x-ndjson"} == set(
        document["paths"]["/v1/classify/batch"]["post"]["responses"]["200"]["content"]
    )


def test_the_number_of_series_does_not_grow_with_what_clients_send(client: httpx.Client) -> None:
    """Unknown paths and invented methods share one series."""

    def series() -> set[str]:
        return {line.split(" ")[0] for line in client.get("/metrics").text.splitlines() if not line.startswith("#")}

    client.get("/unknown/first")
    client.request("FROBNICATE", "/unknown")
    client.get("/readyz")
    series()
    before = series()
    for number in range(5):
        client.get(f"/unknown/{number}?x={number}")
        client.request("BREW", f"/unknown/{number}")
    assert before == series()
    assert 'anyclass_http_requests_total{method="GET",protocol="other",route="unmatched",status="4xx"}' in before


def test_logs_hold_no_labels(server: HttpServer, client: httpx.Client) -> None:
    """A line for each request, with its id; nothing that the client sent in it."""
    headers = {"x-request-id": "find-me", "content-type": "image/png"}
    client.post("/v1/classify", content=RED, params={"labels": SECRET_LABEL}, headers=headers)
    client.post("/v1/classify", content=b"broken", params={"labels": SECRET_LABEL}, headers=headers)
    client.post("/v1/classify", content=b"--" + SECRET_LABEL.encode(), headers={
        "content-type": "multipart/form-data; boundary=b"})  # fmt: skip
    server.settle_log()
    lines = [line for line in server.logs() if line.get("request_id") == "find-me"]
    assert [(200, None), (415, "unsupported-image-format")] == [(each["status"], each.get("problem")) for each in lines]
    assert SECRET_LABEL not in server.raw_log()
