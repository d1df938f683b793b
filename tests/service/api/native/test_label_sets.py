"""Label sets over real connections to a real process, with a state that outlives the process."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.documentation.request_bodies import CLASSIFY
from service.api.native import label_sets
from service.api.native.label_set_schemas import LabelSetOut, LabelSetsOut
from service.api.native.schemas import BatchAnswer, ClassifyAnswer
from service.api.problems.schemas import Problem
from service.settings import Settings
from tests.support.classifying import picture
from tests.support.http_server import HttpServer, http_server
from tests.support.longest_step import longest_step
from tests.support.redis_server import running_redis
from tests.support.tiny_bundle import write_tiny_bundle
from tests.support.waiting import wait_until

RED = picture("red")
RED_64 = base64.b64encode(RED).decode()
COLOURS = ["red", "green", "blue"]
INLINE_PROMPTS = 100


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """One process for the tests of this module that leave it alive."""
    folder = tmp_path_factory.mktemp("label-sets")
    bundle = write_tiny_bundle(folder / "bundle")
    env = {
        "ANYCLASS_STATE_URL": str(folder / "state"),
        "ANYCLASS_MAX_LABEL_SET_LABELS": "5000",
        "ANYCLASS_LABEL_SET_INLINE_PROMPTS": str(INLINE_PROMPTS),
    }
    with http_server(bundle, folder, env=env) as running:
        yield running


@pytest.fixture
def client(server: HttpServer) -> Iterator[httpx.Client]:
    """Connect a client to that process, which has the set `colours` and no other."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for each in client.get("/v1/label-sets", params={"limit": 1000}).json()["label_sets"]:
            client.delete(f"/v1/label-sets/{each['name']}").raise_for_status()
        client.put("/v1/label-sets/colours", json={"labels": COLOURS, "templates": "none"}).raise_for_status()
        yield client


def problem_of(answer: httpx.Response) -> tuple[int, str]:
    """Check a problem; return its status and slug."""
    assert "application/problem+json" == answer.headers["content-type"]
    problem = Problem.model_validate(answer.json())
    assert answer.status_code == problem.status
    return problem.status, problem.type.rpartition(":")[2]


def wait_ready(client: httpx.Client, name: str) -> dict[str, Any]:
    """Poll a set's status until it is no longer being computed."""
    status: dict[str, Any] = {}

    def ready() -> bool:
        nonlocal status
        answer = client.get(f"/v1/label-sets/{name}")
        status = answer.json()
        if status["status"] != "computing":
            return True
        assert int(answer.headers["retry-after"]) >= 1
        return False

    # Label sets are computed in the background: polls without a pause would take the cores that it waits for.
    wait_until(ready)
    return status


def test_writing_and_reading(client: httpx.Client) -> None:
    """201 for a new set, 200 for a change and for none; the ETag tells versions apart."""
    body = {"labels": ["a", {"label": "b", "descriptions": ["x", "y"]}], "templates": ["the {}"]}
    created = client.put("/v1/label-sets/s-1.x_y", json=body)
    assert 201 == created.status_code
    status = LabelSetOut.model_validate(created.json())
    assert ("s-1.x_y", "ready", 2, ["the {}"]) == (status.name, status.status, status.label_count, status.templates)
    assert f'"{status.version}"' == created.headers["etag"]
    again = client.put("/v1/label-sets/s-1.x_y", json=body)
    assert (200, created.headers["etag"]) == (again.status_code, again.headers["etag"])
    found = client.get("/v1/label-sets/s-1.x_y", params={"include": "labels"})
    assert body["labels"] == found.json()["labels"]
    assert "labels" not in client.get("/v1/label-sets/s-1.x_y").json()
    unchanged = client.get("/v1/label-sets/s-1.x_y", headers={"if-none-match": created.headers["etag"]})
    assert (304, b"") == (unchanged.status_code, unchanged.content)
    changed = client.put("/v1/label-sets/s-1.x_y", json={"labels": ["c"]})
    assert 200 == changed.status_code
    assert created.headers["etag"] != changed.headers["etag"]
    assert 204 == client.delete("/v1/label-sets/s-1.x_y").status_code
    assert (404, "unknown-label-set") == problem_of(client.get("/v1/label-sets/s-1.x_y"))


def test_all_forms_of_a_request_may_name_a_set(client: httpx.Client) -> None:
    """JSON, a form and a raw image, one image and several: the answer is the same as with the labels themselves."""
    plain = client.post("/v1/classify", json={"image": RED_64, "labels": COLOURS, "templates": "none"}).json()
    answers = [
        client.post("/v1/classify", json={"image": RED_64, "label_set": "colours"}),
        client.post("/v1/classify", files={"image": RED}, data={"label_set": "colours"}),
        client.post(
            "/v1/classify", content=RED, headers={"content-type": "image/png"}, params={"label_set": "colours"}
        ),
    ]
    for answer in answers:
        parsed = ClassifyAnswer.model_validate(answer.json())
        assert plain["predictions"] == answer.json()["predictions"]
        assert (3, 3) == (parsed.usage.labels, parsed.usage.labels_cached)
    batches = [
        client.post("/v1/classify/batch", json={"images": [RED_64, "AAAA"], "label_set": "colours"}),
        client.post("/v1/classify/batch", files=[("image", RED)], data={"label_set": "colours"}),
    ]
    for answer in batches:
        batch = BatchAnswer.model_validate(answer.json())
        assert plain["predictions"] == answer.json()["results"][0]["predictions"]
        assert 3 == batch.usage.labels


@pytest.mark.parametrize(
    ("fields", "status", "word"),
    [
        ({"label_set": "nothing"}, 404, "unknown-label-set"),
        ({"label_set": "../x"}, 404, "unknown-label-set"),
        ({"label_set": "colours", "labels": ["a"]}, 422, "invalid-request"),
        ({"label_set": "colours", "templates": "default"}, 422, "invalid-request"),
        ({"label_set": "colours", "model": "nobody"}, 404, "unknown-model"),
        ({"label_set": 1}, 422, "invalid-request"),
    ],
)
def test_a_request_that_cannot_use_a_set(client: httpx.Client, fields: Any, status: int, word: str) -> None:
    """Each reason has its problem; only the set's own templates are used."""
    answer = client.post("/v1/classify", json={"image": RED_64, **fields})
    assert (status, word) == problem_of(answer)


@pytest.mark.parametrize(
    ("name", "body", "status", "word"),
    [
        ("s", {"labels": []}, 422, "invalid-labels"),
        ("s", {"labels": ["a", "a "]}, 422, "invalid-labels"),
        ("s", {"labels": ["\ud800"]}, 422, "invalid-labels"),
        ("s", {"labels": ["word " * 100]}, 422, "prompt-too-long"),
        ("s", {"labels": [str(n) for n in range(5_001)]}, 413, "too-many-labels"),
        ("s", {"labels": ["a"], "templates": "nothing"}, 422, "invalid-templates"),
        ("s", {"labels": ["a"], "templates": ["{} {}"]}, 422, "invalid-templates"),
        ("s", {"labels": ["a"], "templates": "\ud800"}, 422, "invalid-templates"),
        ("s", {"labels": ["a"], "templates": "x" * 257}, 422, "invalid-templates"),
        ("s", {"labels": [{"label": "a"}]}, 422, "invalid-request"),
        ("s", {"labels": [{"label": "a", "descriptions": []}]}, 422, "invalid-labels"),
        ("s", {"labels": [1]}, 422, "invalid-request"),
        ("s", {"labels": "a"}, 422, "invalid-request"),
        ("s", {}, 422, "invalid-request"),
        ("s", {"labels": ["a"], "more": 1}, 422, "invalid-request"),
        ("s", [], 400, "malformed-request"),
        ("S", {"labels": ["a"]}, 422, "invalid-request"),
        ("a" * 101, {"labels": ["a"]}, 422, "invalid-request"),
        ("%2e%2e%2fx", {"labels": ["a"]}, 404, "not-found"),
    ],
)
def test_what_cannot_be_written(client: httpx.Client, name: str, body: Any, status: int, word: str) -> None:
    """Each mistake has its problem, and nothing is kept."""
    content = json.dumps(body).encode()
    answer = client.put(f"/v1/label-sets/{name}", content=content, headers={"content-type": "application/json"})
    assert (status, word) == problem_of(answer)
    names = [each["name"] for each in client.get("/v1/label-sets").json()["label_sets"]]
    assert ["colours"] == names


def test_only_json_is_read(client: httpx.Client) -> None:
    """Other media types are refused, and so are unknown query parameters."""
    assert (415, "unsupported-media-type") == problem_of(client.put("/v1/label-sets/s", data={"labels": "a"}))
    assert (415, "unsupported-media-type") == problem_of(client.put("/v1/label-sets/s"))
    with_query = client.put("/v1/label-sets/s", params={"model": "tiny"}, json={"labels": ["a"]})
    assert (422, "invalid-request") == problem_of(with_query)


def test_conditions(client: httpx.Client) -> None:
    """A version that the client does not know is answered with 412; tags are spelled as in RFC 9110."""
    path = "/v1/label-sets/colours"
    tag = client.get(path).headers["etag"]

    def put(header: str, value: str) -> httpx.Response:
        return client.put(path, json={"labels": ["x", value]}, headers={header: value})

    for header, value in (
        ("if-none-match", "*"),
        ("if-match", '"other"'),
        ("if-match", f"W/{tag}"),
        ("if-none-match", tag),
    ):
        assert (412, "version-mismatch") == problem_of(put(header, value))
    for value in ("other", '"open', f"{tag} {tag}x", ","):
        assert (400, "malformed-request") == problem_of(put("if-match", value))
    assert 200 == put("if-match", f'"other", {tag}').status_code
    assert (412, "version-mismatch") == problem_of(client.delete(path, headers={"if-match": tag}))
    assert 200 == put("if-match", "*").status_code
    assert 204 == client.delete(path, headers={"if-match": "*"}).status_code
    assert (412, "version-mismatch") == problem_of(put("if-match", "*"))
    assert 201 == put("if-none-match", "*").status_code


def test_a_large_set(client: httpx.Client) -> None:
    """202, with a status to follow; until it is ready, 409 with Retry-After; then it answers."""
    labels = [f"label {number}" for number in range(5_000)]
    answer = client.put("/v1/label-sets/large", json={"labels": labels, "templates": "none"})
    assert 202 == answer.status_code
    assert int(answer.headers["retry-after"]) >= 1
    status = LabelSetOut.model_validate(answer.json())
    assert ("computing", 5_000) == (status.status, status.progress.total)
    request = {"image": RED_64, "label_set": "large", "top_k": 3}
    early = client.post("/v1/classify", json=request)
    if early.status_code != 200:
        assert (409, "label-set-computing") == problem_of(early)
        assert int(early.headers["retry-after"]) >= 1
    assert "ready" == wait_ready(client, "large")["status"]
    usage = client.post("/v1/classify", json=request).json()["usage"]
    assert {"labels": 5_000, "labels_cached": 5_000} == usage


def test_a_large_set_that_cannot_be_computed(client: httpx.Client) -> None:
    """Its status has the reason, and so have answers to requests that use it."""
    labels = [f"label {number}" for number in range(INLINE_PROMPTS)]
    assert 202 == client.put("/v1/label-sets/bad", json={"labels": [*labels, "word " * 100]}).status_code
    status = wait_ready(client, "bad")
    assert "failed" == status["status"]
    assert f"Label {INLINE_PROMPTS} " in status["models"][0]["reason"]
    answer = client.post("/v1/classify", json={"image": RED_64, "label_set": "bad"})
    assert (409, "label-set-failed") == problem_of(answer)


def test_pages(client: httpx.Client) -> None:
    """By name; `next` leads from page to page."""
    for name in ("a", "b"):
        client.put(f"/v1/label-sets/{name}", json={"labels": ["x"]}).raise_for_status()
    names: list[str] = []
    after: str | None = ""
    while after is not None:
        params = {"limit": "2", **({"after": after} if after else {})}
        page = LabelSetsOut.model_validate(client.get("/v1/label-sets", params=params).json())
        names += [each.name for each in page.label_sets]
        after = page.next
    assert ["a", "b", "colours"] == names
    for params in ({"limit": "0"}, {"limit": "1001"}, {"limit": "x"}, {"after": "A"}, {"page": "2"}):
        assert (422, "invalid-request") == problem_of(client.get("/v1/label-sets", params=params))
    wrong = client.get("/v1/label-sets/a", params={"include": "everything"})
    assert (422, "invalid-request") == problem_of(wrong)


def test_no_label_is_logged(client: httpx.Client, server: HttpServer) -> None:
    """Neither a set's labels nor its descriptions."""
    body = {"labels": [{"label": "secret-label", "descriptions": ["secret-words"]}]}
    client.put("/v1/label-sets/s", json=body).raise_for_status()
    client.post("/v1/classify", json={"image": RED_64, "label_set": "s"}).raise_for_status()
    server.settle_log()
    assert "secret-" not in server.raw_log()


def test_the_interface_is_documented(client: httpx.Client) -> None:
    """In the OpenAPI document, with a schema of what is written."""
    document = client.get("/openapi.json").json()
    assert {"put", "get", "delete"} == set(document["paths"]["/v1/label-sets/{name}"])
    assert {"get"} == set(document["paths"]["/v1/label-sets"])
    assert {"labels", "templates"} == set(document["components"]["schemas"]["LabelSetIn"]["properties"])
    assert "DescribedLabel" in document["components"]["schemas"]
    assert "label_set" in {parameter["name"] for parameter in CLASSIFY["parameters"]}


def test_a_set_outlives_a_killed_process(tmp_path: Path) -> None:
    """After a kill -9 during a large computation the next process continues, and ready sets stay ready."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    env = {"ANYCLASS_STATE_URL": (tmp_path / "state").as_uri(), "ANYCLASS_LABEL_SET_INLINE_PROMPTS": "10"}
    labels = [f"label {number}" for number in range(12_000)]
    with http_server(bundle, tmp_path, env=env) as first, httpx.Client(base_url=first.url, timeout=30) as client:
        client.put("/v1/label-sets/small", json={"labels": COLOURS}).raise_for_status()
        assert 202 == client.put("/v1/label-sets/large", json={"labels": labels}).status_code
        while not (status := client.get("/v1/label-sets/large").json())["progress"]["done"]:
            assert "computing" == status["status"]
        first.process.kill()
        first.wait()
    with http_server(bundle, tmp_path, env=env) as second, httpx.Client(base_url=second.url, timeout=30) as client:
        small = client.post("/v1/classify", json={"image": RED_64, "label_set": "small"}).json()
        assert "red" == small["predictions"][0]["label"]
        assert status["version"] == wait_ready(client, "large")["version"]
        large = client.post("/v1/classify", json={"image": RED_64, "label_set": "large", "top_k": 1})
        assert 12_000 == large.json()["usage"]["labels"]
        assert 0 == second.stop()


def test_a_redis_that_evicts_stops_the_start(tmp_path: Path) -> None:
    """With exit code 2 and the reason in the log."""
    bundle = write_tiny_bundle(tmp_path / "bundle")
    arguments = ["--maxmemory-policy", "allkeys-lru"]
    with running_redis(tmp_path, password="s3cret", arguments=arguments) as redis:
        env = {"ANYCLASS_STATE_URL": redis.url}
        with http_server(bundle, tmp_path, env=env, ready=False) as server:
            assert 2 == server.wait()
            assert "allkeys-lru" in server.raw_log()
            assert "s3cret" not in server.raw_log()


def test_a_large_set_is_checked_in_short_steps() -> None:
    """Each described label runs code in Python, at which other threads have their turn."""
    described = [{"label": str(number), "descriptions": ["a", "b"]} for number in range(20_000)]
    body = json.dumps({"labels": described}).encode()
    with longest_step() as step:
        definition = label_sets._definition(body, Settings())
    assert 40_000 == definition.text_count
    assert step.seconds < 0.02
