"""Warnings in the answers of every protocol, from one real process."""

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from service.api.native.label_set_schemas import LabelSetOut
from service.api.native.schemas import BatchAnswer, BatchResult, ClassifyAnswer
from tests.support.classifying import picture
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle

RED = base64.b64encode(picture("red")).decode()
TWINS = ["red", "blue", "RED"]
EQUAL = ["labels_equal_to_model"]
HEADER = "x-anyclass-warnings"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """Run a process with a state."""
    folder = tmp_path_factory.mktemp("warnings")
    with http_server(
        write_tiny_bundle(folder / "bundle"), folder, env={"ANYCLASS_STATE_URL": str(folder / "state")}
    ) as running:
        yield running


@pytest.fixture
def client(server: HttpServer) -> Iterator[httpx.Client]:
    """Connect a client to that process."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def codes(body: Any) -> list[str]:
    """Return the codes of an answer's warnings."""
    return [each["code"] for each in body.get("warnings", ())]


def classify(client: httpx.Client, labels: list[str], **fields: Any) -> httpx.Response:
    """Classify a red picture."""
    answer = client.post("/v1/classify", json={"image": RED, "labels": labels, **fields})
    assert 200 == answer.status_code
    ClassifyAnswer.model_validate(answer.json())
    return answer


@pytest.mark.parametrize("scoring", ["softmax", "cosine"])
def test_labels_that_are_equal_to_the_model(client: httpx.Client, scoring: str) -> None:
    """The warning names them, also when they are cached, alone or as a list; without twins no answer has one."""
    for templates in ("default", "default", "none"):
        answer = classify(client, TWINS, templates=templates, scoring=scoring)
        assert [{"code": EQUAL[0], "labels": [0, 2]}] == [
            {name: each[name] for name in ("code", "labels")} for each in answer.json()["warnings"]
        ]
        assert EQUAL[0] == answer.headers[HEADER]
    for labels in (["red", "blue"], ["RED", "blue"]):
        answer = classify(client, labels, scoring=scoring)
        assert "warnings" not in answer.json()
        assert HEADER not in answer.headers


def test_one_label(client: httpx.Client) -> None:
    """Its softmax is 1 for every image; a comma in it is pointed out."""
    assert ["single_label"] == codes(classify(client, ["red"]).json())
    assert [] == codes(classify(client, ["red"], scoring="cosine").json())
    assert ["single_label", "comma_in_label"] == codes(classify(client, ["red,blue"]).json())
    assert [] == codes(classify(client, ["red,blue", "green"]).json())


def test_batches(client: httpx.Client) -> None:
    """A document has them once, lines have them in the first line with predictions; both have the header."""
    request = {"images": ["AAAA", RED, RED], "labels": TWINS}
    document = client.post("/v1/classify/batch", json=request)
    BatchAnswer.model_validate(document.json())
    assert (EQUAL, EQUAL[0]) == (codes(document.json()), document.headers[HEADER])
    assert [[], [], []] == [codes(each) for each in document.json()["results"]]
    for images, expected in ((["AAAA", RED, RED], [[], EQUAL, []]), ([RED, RED], [EQUAL, []])):
        lines = client.post(
            "/v1/classify/batch", json={"images": images, "labels": TWINS}, headers={"accept": "application/x-ndjson"}
        )
        results = [json.loads(line) for line in lines.text.splitlines()]
        assert len(images) == len([BatchResult.model_validate(each) for each in results])
        assert expected == [codes(each) for each in results]
    assert EQUAL[0] == lines.headers[HEADER]


def test_label_sets(client: httpx.Client) -> None:
    """The answer to writing a set has them, also when nothing changes, and so have the answers that use it."""
    for _ in range(2):
        answer = client.put("/v1/label-sets/twins", json={"labels": TWINS})
        LabelSetOut.model_validate(answer.json())
        assert (EQUAL, EQUAL[0]) == (codes(answer.json()), answer.headers[HEADER])
    used = client.post("/v1/classify", json={"image": RED, "label_set": "twins"})
    assert EQUAL == codes(used.json())
    lone = client.put("/v1/label-sets/lone", json={"labels": [{"label": "red,blue", "descriptions": ["a", "b"]}]})
    assert ["comma_in_label"] == codes(lone.json())
    described = [{"label": "a", "descriptions": ["red", "blue"]}, {"label": "b", "descriptions": ["Blue", "Red"]}]
    assert EQUAL == codes(client.put("/v1/label-sets/described", json={"labels": described}).json())
    assert [] == codes(client.put("/v1/label-sets/sound", json={"labels": ["red", "blue"]}).json())


def test_protocols_whose_answers_have_no_such_field(client: httpx.Client) -> None:
    """They have the header, and their answers are as their clients expect them."""
    hugging_face = client.post("/", json={"inputs": RED, "parameters": {"candidate_labels": TWINS}})
    assert ([dict], EQUAL[0]) == (list({type(each) for each in hugging_face.json()}), hugging_face.headers[HEADER])
    openai = client.post("/v1/embeddings", json={"input": ["red", "σκύλος"]})
    assert ("labels_unknown_to_model", False) == (openai.headers[HEADER], "warnings" in openai.json())

    def infer(*texts: str) -> httpx.Response:
        image = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [RED]}
        text = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": texts}
        return client.post("/v2/models/tiny/infer", json={"inputs": [image, text]}).raise_for_status()

    assert EQUAL[0] == infer(*TWINS).headers[HEADER]
    assert "single_label" == infer("red").headers[HEADER]
    assert HEADER not in infer("red", "blue").headers


def test_batch_jobs(client: httpx.Client) -> None:
    """An answered line has the warnings of a single request."""
    line = {
        "custom_id": "1",
        "method": "POST",
        "url": "/v1/classify",
        "body": {"image": RED, "labels": TWINS},
    }
    file = client.post("/v1/files", files={"file": json.dumps(line).encode()}, data={"purpose": "batch"}).json()
    batch = client.post("/v1/batches", json={"input_file_id": file["id"], "endpoint": "/v1/classify"}).json()
    deadline = time.monotonic() + 30
    while batch["status"] not in ("completed", "failed") and time.monotonic() < deadline:
        time.sleep(0.05)
        batch = client.get(f"/v1/batches/{batch['id']}").json()
    output = client.get(f"/v1/files/{batch['output_file_id']}/content").json()
    assert EQUAL == codes(output["response"]["body"])
