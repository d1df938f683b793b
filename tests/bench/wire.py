"""Build requests as bytes, before any timing."""

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

from tests.bench.places import REQUESTS

_JSON: Final = "application/json"
_STAGE: Final = re.compile(r"(\w+);dur=([\d.]+)")


def post(path: str, content_type: str, body: bytes) -> bytes:
    """Return a whole HTTP/1.1 request on a connection that stays open."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body


def picture_as_body(path: str, picture: bytes, labels: Sequence[str]) -> bytes:
    """Put the picture into the body, the labels into the query: the cheapest form of service and plain server."""
    return post(f"{path}?{urlencode({'labels': labels}, doseq=True)}", "image/jpeg", picture)


def classify_json(picture: bytes, labels: Sequence[str], **options: object) -> bytes:
    """Use the service's JSON form, which has room for any number of labels."""
    content = {"image": base64.b64encode(picture).decode(), "labels": labels, **options}
    return post("/v1/classify", _JSON, json.dumps(content).encode())


def infinity_embeddings(model: str, picture: bytes) -> bytes:
    """Request an image embedding; infinity takes data URIs, and leaves scoring labels to its client."""
    uri = f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"
    content = {"model": model, "input": [uri], "modality": "image", "encoding_format": "base64"}
    return post("/embeddings", _JSON, json.dumps(content).encode())


def litserve_predict(picture: bytes, labels: Sequence[str]) -> bytes:
    """Post JSON to /predict, as LitServe expects."""
    content = {"image": base64.b64encode(picture).decode(), "labels": labels}
    return post("/predict", _JSON, json.dumps(content).encode())


def stages(server_timing: str) -> dict[str, float]:
    """Return the seconds of each stage in a `Server-Timing` header."""
    return {stage: float(milliseconds) / 1_000 for stage, milliseconds in _STAGE.findall(server_timing)}


def write(name: str, requests: Sequence[bytes]) -> list[str]:
    """Write requests to files for the load generator, and return their paths."""
    REQUESTS.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for number, request in enumerate(requests):
        paths.append(REQUESTS / f"{name}-{number}.http")
        paths[-1].write_bytes(request)
    return [str(path) for path in paths]
