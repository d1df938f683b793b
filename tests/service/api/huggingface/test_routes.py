"""Hugging Face's own clients, in Python and JavaScript, against a real server."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from pydantic import TypeAdapter

from service.api.huggingface.routes import EXAMPLES
from service.api.huggingface.schemas import LabelScore
from service.api.problems.schemas import PlainError
from tests.support.classifying import picture
from tests.support.http_server import HttpServer, http_server
from tests.support.javascript import zero_shot
from tests.support.tiny_bundle import write_tiny_bundle

RED = picture("red")
RED_64 = base64.b64encode(RED).decode()
LABELS = ["green", "red", "blue"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """One process for all tests of this module."""
    folder = tmp_path_factory.mktemp("huggingface")
    bundle = write_tiny_bundle(folder / "bundle", aliases=("acme/tiny",))
    with http_server(bundle, folder, env={"ANYCLASS_MAX_BODY_BYTES": "200000"}) as running:
        yield running


@pytest.fixture
def client(server: HttpServer) -> Iterator[httpx.Client]:
    """Connect a plain client, for requests that the clients do not send."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def javascript(url: str, **parameters: Any) -> dict[str, Any]:
    """Run it, or skip the test."""
    outcome = zero_shot(url, RED, parameters)
    if outcome is None:
        pytest.skip("@huggingface/inference is not installed; scripts/clients.sh installs it if node is available")
    return outcome


@pytest.mark.parametrize("path", ["", "/", "/models/tiny", "/models/acme/tiny"])
def test_python(server: HttpServer, tmp_path: Path, path: str) -> None:
    """The client takes the server's address, or that of one of its models; labels come back best first."""
    file = tmp_path / "red.png"
    file.write_bytes(RED)
    for image in (RED, file):
        answer = InferenceClient(f"{server.url}{path}").zero_shot_image_classification(image, LABELS)
        assert "red" == answer[0].label
        assert set(LABELS) == {each.label for each in answer}
        assert [each.score for each in answer] == sorted((each.score for each in answer), reverse=True)
        assert 1 == pytest.approx(sum(each.score for each in answer), abs=1e-5)


def test_the_answer_is_that_of_classify(server: HttpServer, client: httpx.Client) -> None:
    """With and without a template of the client's own."""
    speaker = InferenceClient(server.url)
    for given, same in ((None, "default"), ("a {} thing", ["a {} thing"])):
        answer = speaker.zero_shot_image_classification(RED, LABELS, hypothesis_template=given)
        own = client.post("/v1/classify", json={"image": RED_64, "labels": LABELS, "templates": same}).json()
        assert own["predictions"] == [{"label": each.label, "score": each.score} for each in answer]


def test_pythons_errors(server: HttpServer) -> None:
    """The caller sees errors of labels and of the address."""
    with pytest.raises(HfHubHTTPError, match="Labels 0 and 1 are the same") as caught:
        InferenceClient(server.url).zero_shot_image_classification(RED, ["a", "a"])
    assert 422 == caught.value.response.status_code
    with pytest.raises(HfHubHTTPError) as missing:
        InferenceClient(f"{server.url}/models/nobody").zero_shot_image_classification(RED, LABELS)
    assert 404 == missing.value.response.status_code


def test_javascript(server: HttpServer) -> None:
    """The client for browsers and Node has the same answer."""
    outcome = javascript(f"{server.url}/models/acme/tiny", candidate_labels=LABELS, hypothesis_template="a {} thing")
    python = InferenceClient(server.url).zero_shot_image_classification(RED, LABELS, hypothesis_template="a {} thing")
    assert [{"label": each.label, "score": each.score} for each in python] == outcome["result"]
    assert 1 == outcome["requests"]


def test_javascripts_errors(server: HttpServer) -> None:
    """The caller sees message and status, after one request."""
    outcome = javascript(server.url, candidate_labels=["a", "a"])
    assert 422 == outcome["error"]["status"]
    assert "Failed to perform inference: Labels 0 and 1 are the same" in outcome["error"]["message"]
    assert 1 == outcome["requests"]


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": RED_64, "parameters": {"candidate_labels": "green, red,blue"}},
        {"inputs": f"data:image/png;base64,{RED_64}", "parameters": {"candidate_labels": LABELS}},
        {"inputs": {"image": RED_64, "candidateLabels": LABELS}},
        {"inputs": {"image": RED_64, "candidateLabels": "green,red,blue"}},
        {"inputs": {"image": RED_64, "candidate_labels": LABELS}, "options": {"wait_for_model": True}},
        {"inputs": {"image": RED_64}, "parameters": {"candidate_labels": LABELS}},
    ],
)
def test_older_forms(client: httpx.Client, body: dict[str, Any]) -> None:
    """Labels next to the image, or as a string with commas."""
    answer = TypeAdapter(list[LabelScore]).validate_python(client.post("/", json=body).json())
    assert "red" == answer[0].label
    assert set(LABELS) == {each.label for each in answer}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/", {}, 422, "inputs"),
        ("POST", "/", {"inputs": RED_64}, 422, "parameters.candidate_labels: is missing"),
        ("POST", "/", {"inputs": RED_64, "parameters": {"candidate_labels": []}}, 422, "No labels were given"),
        ("POST", "/", {"inputs": RED_64, "parameters": {"candidate_labels": LABELS, "x": 1}}, 422, "parameters"),
        ("POST", "/", {"inputs": {"image": RED_64, "candidateLabels": LABELS}, "parameters":
            {"candidate_labels": LABELS}}, 422, "more than one place"),
        ("POST", "/", {"inputs": "http://127.0.0.1/x", "parameters": {"candidate_labels": LABELS}}, 422, "URL"),
        ("POST", "/", {"inputs": "AAAA", "parameters": {"candidate_labels": LABELS}}, 415, "format"),
        ("POST", "/", {"inputs": RED_64, "parameters": {"candidate_labels": LABELS, "hypothesis_template": "x"}}, 422,
            "Template 0 must hold {} exactly once"),
        ("POST", "/", {"inputs": RED_64, "parameters": {"candidate_labels": "a," * 10_001}}, 413, "than 10000 labels"),
        ("POST", "/models/nobody", {"inputs": RED_64}, 404, "Model 'nobody' is not served here"),
        ("POST", "/models/acme/nobody", {}, 404, "Model 'acme/nobody' is not served here"),
        ("GET", "/models/tiny", None, 405, "it allows POST"),
        ("PUT", "/", None, 405, "it allows"),
        ("GET", "/models", None, 404, "No route matches /models"),
    ],
)  # fmt: skip
def test_every_error_has_hugging_faces_form(
    client: httpx.Client, *, method: str, path: str, body: dict[str, Any] | None, status: int, message: str
) -> None:
    """Errors of routing and of reading too."""
    answer = client.request(method, path, json=body)
    assert status == answer.status_code
    assert message in PlainError.model_validate(answer.json()).error
    assert "application/json" == answer.headers["content-type"]
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize("labels", ["red, green,", ",red,,green , "])
def test_empty_pieces_of_a_text_of_labels_are_left_out(client: httpx.Client, labels: str) -> None:
    """Transformers' pipeline does so."""
    answer = client.post("/", json={"inputs": RED_64, "parameters": {"candidate_labels": labels}})
    assert ["red", "green"] == [each["label"] for each in answer.json()]


def test_a_text_of_commas_has_no_labels(client: httpx.Client) -> None:
    """However many they are."""
    few = client.post("/", json={"inputs": RED_64, "parameters": {"candidate_labels": " , ,"}})
    assert (422, "No labels were given; send at least one.") == (few.status_code, few.json()["error"])
    many = client.post("/", json={"inputs": RED_64, "parameters": {"candidate_labels": "," * 100_000}})
    assert 413 == many.status_code


def test_null_counts_as_not_given(client: httpx.Client) -> None:
    """In every place."""
    answer = client.post(
        "/",
        json={"inputs": {"image": RED_64, "candidateLabels": "red, green"}, "parameters": None, "options": None},
    )
    assert 200 == answer.status_code


def test_a_parameter_that_is_not_known_is_named(client: httpx.Client) -> None:
    """With the place at which it stands."""
    parameters = {"candidate_labels": ["red", "green"], "threshold": 0.5}
    answer = client.post("/", json={"inputs": RED_64, "parameters": parameters})
    assert {"error": "parameters.threshold: is not known here"} == answer.json()


def test_what_is_not_json(client: httpx.Client) -> None:
    """An image as the body has no labels, and a body that is too large is not read to its end."""
    raw = client.post("/", content=RED, headers={"content-type": "image/png"})
    assert (415, {"error"}) == (raw.status_code, set(raw.json()))
    large = client.post("/", content=b" " * 200_001, headers={"content-type": "application/json"})
    assert (413, {"error"}) == (large.status_code, set(large.json()))


def test_the_documented_examples_work(client: httpx.Client) -> None:
    """The requests proposed in /docs are answered as documented."""
    for example in EXAMPLES.values():
        answer = TypeAdapter(list[LabelScore]).validate_python(client.post("/", json=example["value"]).json())
        assert "red" in answer[0].label


def test_people_still_find_the_documentation(client: httpx.Client) -> None:
    """`GET /` is the page, which leads to it."""
    assert '<a href="docs"' in client.get("/").text
