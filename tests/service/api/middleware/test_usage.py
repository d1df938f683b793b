"""The work of requests by API key, and the full access log."""

import base64
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from structlog.testing import capture_logs

from service.api.middleware.key_usage import MAX_KEYS, OTHER_KEYS, KeyUsage
from service.monitoring.metrics import Metrics
from service.monitoring.usage import Usage, add_time, add_work, current
from tests.support.application import application
from tests.support.classifying import picture

KEYS = "web:a-key-of-twenty-chars,mobile:another-key-of-them"
WEB, MOBILE = ({"x-api-key": key} for key in ("a-key-of-twenty-chars", "another-key-of-them"))
IMAGE = base64.b64encode(picture()).decode()


async def work(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """Send a request of each kind, and one that is wrong."""
    labels = ["red", "green", "blue"]
    for path, body in (
        ("/v1/classify", {"image": IMAGE, "labels": labels}),
        ("/v1/classify/batch", {"images": [IMAGE, "AAAA", IMAGE], "labels": labels[:2]}),
        ("/v1/embeddings", {"input": ["a cat", f"data:image/png;base64,{IMAGE}"]}),
        ("/", {"inputs": IMAGE, "parameters": {"candidate_labels": labels}}),
    ):
        assert 200 == (await client.post(path, json=body, headers=headers)).status_code, path
    assert 422 == (await client.post("/v1/classify", json={}, headers=headers)).status_code


def counted(app: FastAPI, metric: str, **labels: str) -> float | None:
    """Return a metric's value, None if it has no such series."""
    metrics: Metrics = app.state.services.metrics
    return metrics.registry.get_sample_value(metric, labels)


async def test_work_is_counted_by_the_name_of_the_key(tmp_path: Path) -> None:
    """Requests by status; images that were read, and labels, of every protocol. A refused key counts nowhere."""
    async with application(tmp_path, api_keys=KEYS) as (client, app):
        await work(client, WEB)
        await client.get("/v1/models", headers=MOBILE)
        await client.get("/v1/models", headers={"x-api-key": "not-a-key-of-anyone"})
        await client.get("/livez", headers=WEB)
        assert (4, 1) == tuple(
            counted(app, "anyclass_key_requests_total", key="web", status=each) for each in ("2xx", "4xx")
        )
        assert 1 + 2 + 1 + 1 == counted(app, "anyclass_key_images_total", key="web")
        assert 3 + 2 + 1 + 3 == counted(app, "anyclass_key_labels_total", key="web")
        assert (1, 0) == (
            counted(app, "anyclass_key_requests_total", key="mobile", status="2xx"),
            counted(app, "anyclass_key_images_total", key="mobile"),
        )
        series = await series_of_keys(client)
        assert series
        assert all('key="web"' in line or 'key="mobile"' in line for line in series)


async def series_of_keys(client: httpx.AsyncClient) -> list[str]:
    """Return the lines of /metrics about keys."""
    lines = (await client.get("/metrics")).text.splitlines()
    return [line for line in lines if line.startswith("anyclass_key_")]


def lines_of(captured: list[Any]) -> list[dict[str, Any]]:
    """Return the lines of the access log."""
    return [line for line in captured if line["event"] == "request"]


async def test_the_full_access_log_has_client_and_work(tmp_path: Path) -> None:
    """Also of refused requests, whose client would be in no other log."""
    async with application(tmp_path, api_keys=KEYS, access_log="full") as (client, _):
        with capture_logs() as captured:
            await work(client, WEB)
            await client.post("/v1/classify")
    single, batch, embeddings, hugging_face, wrong, refused = lines_of(captured)
    assert ("127.0.0.1", "tiny", 1, 3) == (single["client"], single["model"], single["images"], single["labels"])
    assert {"decode", "queue", "image", "text", "score"} == set(single["stages_ms"])
    assert all(value >= 0 for value in single["stages_ms"].values())
    assert [(2, 2), (1, 1), (1, 3)] == [(each["images"], each["labels"]) for each in (batch, embeddings, hugging_face)]
    assert (422, "127.0.0.1", False) == (wrong["status"], wrong["client"], "images" in wrong)
    assert (401, "127.0.0.1", False) == (refused["status"], refused["client"], "model" in refused)


async def test_the_standard_log_is_as_it_was(tmp_path: Path) -> None:
    """It adds no count, and a server without keys has no series of keys."""
    async with application(tmp_path) as (client, _):
        with capture_logs() as captured:
            await work(client, {})
        assert [] == await series_of_keys(client)
    expected = {"event", "log_level", "method", "path", "status", "duration_ms"}
    assert [expected] * 4 + [expected | {"problem"}] == [set(line) for line in lines_of(captured)]


def test_so_many_keys_and_no_more() -> None:
    """A file of a thousand keys makes no thousand series."""
    metrics = Metrics()
    usage = KeyUsage(metrics)
    for number in range(MAX_KEYS + 50):
        usage.count(f"key-{number}", "2xx", Usage(images=2))
    usage.count("key-0", "2xx", Usage(images=2))
    values = {
        name: metrics.registry.get_sample_value("anyclass_key_images_total", {"key": name})
        for name in ("key-0", f"key-{MAX_KEYS}", OTHER_KEYS)
    }
    assert {"key-0": 4, f"key-{MAX_KEYS}": None, OTHER_KEYS: 100} == values


def test_work_without_a_request_counts_nowhere() -> None:
    """The lines of batch jobs have none."""
    assert current.get() is None
    add_work("tiny", images=1)
    add_time("image", 1.0)
    assert current.get() is None
