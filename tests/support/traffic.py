"""Send traffic of every kind to a service, to check its metrics: good, refused and hostile."""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import httpx

from tests.support.classifying import picture
from tests.support.redis_server import RedisServer

KEY, GREEDY = "a-key-of-twenty-chars", "another-key-of-twenty"
"""API keys that the service must know."""
PATIENCE_S = 60.0

RED = base64.b64encode(picture("red")).decode()


def send_of_everything(client: httpx.Client, state: RedisServer, number: int) -> None:
    """Send each protocol's requests, each refusal, a job and a label set."""
    file = {"image": ("red.png", picture("red"))}
    labels = json.dumps(["red", "green", f"something {number}"])
    good = [
        client.post("/v1/classify", files=file, data={"labels": labels}),
        client.post("/v1/classify/batch", files=[("image", file["image"])] * 3, data={"labels": labels}),
        client.post("/", json={"inputs": RED, "parameters": {"candidate_labels": ["red", "green"]}}),
        client.post("/v1/embeddings", json={"model": "tiny", "input": ["red", f"text {number}"]}),
        client.post("/v2/models/tiny/infer", json={"inputs": [tensor("image", RED), tensor("text", "red")]}),
        client.get("/v1/models"),
    ]
    assert [200] * len(good) == [answer.status_code for answer in good]
    a_label_set(client, f"set-{number}")
    a_job(client)
    url = {"image": "http://127.0.0.1:9/red.png", "labels": ["red", "green"]}
    bad = [
        client.post("/v1/classify", files=file, data={"labels": labels}, headers={"authorization": "Bearer nobody's"}),
        client.post("/v1/classify", content=b"x" * 100_001, headers={"content-type": "image/png"}),
        client.post("/v1/classify", files={"image": b"no picture"}, data={"labels": labels}),
        client.post("/v1/classify", json=url),
        client.get("/nowhere"),
    ]
    assert [401, 413, 415, 422, 404] == [answer.status_code for answer in bad]
    greedy = {"authorization": f"Bearer {GREEDY}"}
    assert 429 in (client.get("/v1/models", headers=greedy).status_code for _ in range(500))  # the first ends it
    state.freeze()
    assert 503 == client.get("/v1/label-sets").status_code
    state.thaw()


def tensor(name: str, value: str) -> dict[str, Any]:
    """Return an input of the Open Inference Protocol."""
    return {"name": name, "datatype": "BYTES", "shape": [1], "data": [value]}


def a_label_set(client: httpx.Client, name: str) -> None:
    """Create a set, and use it twice once it is computed."""
    assert client.put(f"/v1/label-sets/{name}", json={"labels": ["red", "green", name]}).status_code in {201, 202}
    question = {"image": RED, "label_set": name}
    until(lambda: client.post("/v1/classify", json=question).status_code == 200)
    assert 200 == client.post("/v1/classify", json=question).status_code


def a_job(client: httpx.Client) -> None:
    """Run a job of a valid line and one with an invalid picture to its end."""
    bodies = [{"image": image, "labels": ["red", "green"]} for image in (RED, base64.b64encode(b"no").decode())]
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/classify", "body": body}
        for number, body in enumerate(bodies)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    uploaded = client.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}).json()
    job = {"input_file_id": uploaded["id"], "endpoint": "/v1/classify", "completion_window": "24h"}
    path = f"/v1/batches/{client.post('/v1/batches', json=job).json()['id']}"
    until(lambda: client.get(path).json()["status"] == "completed")


def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, polling slowly enough for the rate limit."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def hostile(client: httpx.Client, word: str) -> None:
    """Send a word in every place open to a client."""
    file = {"image": (f"{word}.png", picture("red"), "image/png")}
    headers = {"x-request-id": word, "user-agent": word, "x-forwarded-for": word, "idempotency-key": word}
    client.post(f"/v1/classify?{word}={word}", files=file, data={"labels": ["red", word]}, headers=headers)
    client.post("/v1/classify", files=file, data={"labels": ["red", word], "model": word})
    client.post("/v1/classify", json={"image": f"http://{word}.invalid/{word}", "labels": [word, "red"]})
    client.post("/v1/classify", json={"image": RED, "label_set": word})
    client.post("/v1/classify", content=b"x", headers={"content-type": f"image/{word}"})
    client.put(f"/v1/label-sets/{word}", json={"labels": [word]})
    client.post(f"/models/{word}", json={"inputs": RED, "parameters": {"candidate_labels": [word, "red"]}})
    client.post(f"/v2/models/{word}/infer", json={"id": word, "inputs": [tensor(word, word)]})
    client.post("/v1/embeddings", json={"model": word, "input": word, "user": word})
    client.post("/v1/files", files={"file": (word, word.encode())}, data={"purpose": word})
    client.get(f"/v1/batches/{word}")
    client.get(f"/{word}")
    client.request(word.upper(), "/v1/classify")
    client.get("/v1/models", headers={"authorization": f"Bearer {word}", "host": word})
