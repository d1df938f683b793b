"""Processes that are killed in the middle of batch jobs."""

import base64
import io
import json
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI
from openai.types import Batch
from PIL import Image

from service.jobs.validation import CHUNK_LINES
from tests.support.http_server import HttpServer, http_server
from tests.support.redis_server import running_redis
from tests.support.tiny_bundle import write_tiny_bundle
from tests.support.waiting import wait_until

KILLS = int(os.environ.get("KILLS", "7"))
"""`make kill-batches` sets it to 20."""
LINES = 2_000
"""Enough for a job to be under way when a replica has answered some of it."""
SOME_LINES = 2 * CHUNK_LINES + 1
"""A replica with two workers that has answered as many has finished a chunk: its lines are answered for good."""
LINES_UNDER_KILLS = 1_000
PATIENCE_S = 120.0
CLASSIFY: Any = "/v1/classify"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that loads quickly."""
    return write_tiny_bundle(tmp_path / "bundle")


def pictures() -> list[str]:
    """Return small images in base64, and one invalid one."""
    found = []
    for shade in range(0, 256, 32):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (shade, 255 - shade, 0)).save(buffer, "PNG")
        found.append(base64.b64encode(buffer.getvalue()).decode())
    return [*found, "AAAA"]


def input_file(count: int) -> bytes:
    """Return a file of so many lines; every ninth has an invalid image."""
    images = pictures()
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/classify",
            "body": {"image": images[number % len(images)], "labels": ["red", "green"]},
        }
        for number in range(count)
    ]
    return "\n".join(map(json.dumps, lines)).encode()


@contextmanager
def client_of(server: HttpServer) -> Iterator[OpenAI]:
    """Open OpenAI's own client on a server."""
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def begin(client: OpenAI, count: int) -> str:
    """Create a batch of so many lines; return its id."""
    file = client.files.create(file=("in.jsonl", input_file(count)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=CLASSIFY, completion_window="24h").id


def ended(client: OpenAI, batch_id: str) -> Batch:
    """Wait for the end of a batch."""
    end = time.monotonic() + PATIENCE_S
    while (batch := client.batches.retrieve(batch_id)).status in ("validating", "in_progress", "finalizing"):
        assert time.monotonic() < end
        time.sleep(0.05)
    return batch


def outcome(client: OpenAI, batch: Batch) -> tuple[list[Any], list[Any]]:
    """Read both files of a batch: ids, statuses and predictions, in the files' order."""
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    found: list[list[Any]] = []
    for file_id in (batch.output_file_id, batch.error_file_id):
        lines = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
        found.append(
            [
                (line["custom_id"], line["response"]["status_code"], line["response"]["body"].get("predictions"))
                for line in lines
            ]
        )
    return found[0], found[1]


def test_kills_lose_nothing_and_double_nothing(bundle: Path, tmp_path: Path) -> None:
    """A service killed at random moments writes the same lines, in order, as one that was not killed."""
    with (
        http_server(bundle, tmp_path, env={"ANYCLASS_STATE_URL": str(tmp_path / "peace")}) as server,
        client_of(server) as client,
    ):
        expected = outcome(client, ended(client, begin(client, LINES_UNDER_KILLS)))
    lines = LINES_UNDER_KILLS
    assert [f"line-{n}" for n in range(lines) if n % 9 != 8] == [line[0] for line in expected[0]]
    assert [f"line-{n}" for n in range(lines) if n % 9 == 8] == [line[0] for line in expected[1]]

    moments = random.Random(5)
    env = {"ANYCLASS_STATE_URL": str(tmp_path / "state"), "ANYCLASS_JOB_LEASE_S": "1"}
    batches: list[str] = []
    kills = 0
    while kills < KILLS:
        with http_server(bundle, tmp_path, env=env) as server, client_of(server) as client:
            if not batches or client.batches.retrieve(batches[-1]).status == "completed":
                batches.append(begin(client, lines))
            time.sleep(moments.uniform(0, 0.3))
            kills += client.batches.retrieve(batches[-1]).status in ("validating", "in_progress", "finalizing")
            server.process.send_signal(signal.SIGKILL)
            server.wait()
    with http_server(bundle, tmp_path, env=env) as server, client_of(server) as client:
        for batch_id in batches:
            batch = ended(client, batch_id)
            assert batch.request_counts is not None
            assert (lines, len(expected[0]), len(expected[1])) == (
                batch.request_counts.total,
                batch.request_counts.completed,
                batch.request_counts.failed,
            )
            assert expected == outcome(client, batch)


def lines_answered(server: HttpServer) -> float:
    """Return the number of job lines that this process has answered."""
    rows = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_S).text.splitlines()
    return sum(float(row.split()[-1]) for row in rows if row.startswith("anyclass_job_lines_total{"))


def ids_of(lines: Sequence[Any]) -> list[str]:
    """Return the ids of lines."""
    return [line[0] for line in lines]


def test_replicas_share_a_job_and_take_over_from_one_that_is_killed(bundle: Path, tmp_path: Path) -> None:
    """Two replicas on one Redis answer lines of one job; when one is killed, the other takes over its lines.

    Each is suspended while the other answers, so that neither finishes the job alone, however slow the machine is.
    """
    with running_redis(tmp_path) as redis:
        env = {"ANYCLASS_STATE_URL": redis.url, "ANYCLASS_JOB_LEASE_S": "1"}
        with (
            http_server(bundle, tmp_path, env=env) as first,
            http_server(bundle, tmp_path, env=env) as second,
            client_of(second) as client,
        ):
            batch_id = begin(client, LINES)
            wait_until(lambda: lines_answered(second) >= SOME_LINES)
            second.process.send_signal(signal.SIGSTOP)
            wait_until(lambda: lines_answered(first) >= SOME_LINES)
            first.process.send_signal(signal.SIGSTOP)
            second.process.send_signal(signal.SIGCONT)
            assert "in_progress" == client.batches.retrieve(batch_id).status
            first.process.send_signal(signal.SIGKILL)
            first.wait()
            batch = ended(client, batch_id)
            output, errors = outcome(client, batch)
            assert lines_answered(second) < LINES
    assert "completed" == batch.status
    assert [f"line-{n}" for n in range(LINES) if n % 9 != 8] == ids_of(output)
    assert [f"line-{n}" for n in range(LINES) if n % 9 == 8] == ids_of(errors)
