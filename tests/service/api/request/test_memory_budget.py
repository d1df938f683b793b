"""The limit on the bytes of request bodies in memory holds, whatever clients do."""

import asyncio
import base64
import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from service.api.problems.table import BodiesFull
from service.api.request.memory_budget import BufferedBody, MemoryBudget
from service.api.request.off_loop import off_loop
from service.monitoring.metrics import Metrics
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle
from tests.support.waiting import wait_until

PATIENCE_S = 60.0
MIB = 2**20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that loads quickly."""
    return write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


def noise(side: int) -> bytes:
    """Make an image that cannot be compressed, of some 3 bytes a pixel."""
    buffer = io.BytesIO()
    channels = [Image.effect_noise((side, side), 90) for _ in range(3)]
    Image.merge("RGB", channels).save(buffer, "BMP")
    return buffer.getvalue()


def number(server: HttpServer, metric: str) -> int:
    """Return the value of a metric without labels."""
    lines = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_S).text.splitlines()
    return int(float(next(line for line in lines if line.startswith(f"{metric} ")).split()[1]))


def held(server: HttpServer) -> int:
    """Return the bytes of bodies in memory."""
    return number(server, "anyclass_body_bytes")


@contextmanager
def stalled(server: HttpServer, size: int, *, declared: bool = True) -> Iterator[socket.socket]:
    """Connect a client that sends all but the last byte of a body, with or without its length."""
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=PATIENCE_S) as connection:
        length = f"Content-Length: {size}" if declared else "Transfer-Encoding: chunked"
        head = f"POST /v1/classify?labels=a HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n{length}\r\n\r\n"
        begin = b"" if declared else f"{size:x}\r\n".encode()
        connection.sendall(head.encode() + begin)
        connection.sendall(bytes(size - 1))
        yield connection


def test_the_budget_is_shared_by_all_requests() -> None:
    """Bytes of one body are not available to another; refused and announced bytes do not count; release frees them."""
    metrics = Metrics()
    budget = MemoryBudget(100, metrics)
    first, second = BufferedBody(budget), BufferedBody(budget)
    first.check_fits(100)
    first.add(60)
    second.add(40)
    with pytest.raises(BodiesFull):
        second.add(1)
    with pytest.raises(BodiesFull):
        BufferedBody(budget).check_fits(1)
    assert 100 == budget.used_bytes == metrics.registry.get_sample_value("anyclass_body_bytes")
    assert 2 == metrics.registry.get_sample_value("anyclass_bodies_refused_total")
    first.release()
    first.release()
    assert 40 == budget.used_bytes
    second.add(60)
    second.release()
    assert 0 == budget.used_bytes == metrics.registry.get_sample_value("anyclass_body_bytes")


async def test_large_bodies_are_parsed_one_at_a_time() -> None:
    """JSON takes many times its bytes while it is parsed; small bodies do not wait for a large one."""
    begun: list[str] = []
    first_begun, first_may_end = threading.Event(), threading.Event()

    def first() -> None:
        begun.append("first")
        first_begun.set()
        first_may_end.wait(PATIENCE_S)

    tasks = [
        asyncio.create_task(off_loop(MIB, first)),
        asyncio.create_task(off_loop(MIB, lambda: begun.append("second"))),
    ]
    await asyncio.to_thread(first_begun.wait, PATIENCE_S)
    await off_loop(10, lambda: begun.append("small"))
    assert ["first", "small"] == begun
    first_may_end.set()
    await asyncio.gather(*tasks)
    assert ["first", "small", "second"] == begun


@pytest.mark.parametrize("declared", [True, False], ids=["length known", "chunked"])
def test_many_stalled_bodies_take_a_bounded_amount_of_memory(bundle: Path, tmp_path: Path, declared: bool) -> None:
    """Further bodies are refused; after the clients have gone, a large request succeeds and no bytes are held."""
    size, limit = 4 * MIB, 32 * MIB
    env = {"ANYCLASS_MAX_BODY_BYTES": str(size), "ANYCLASS_MAX_TOTAL_BODY_BYTES": str(limit)}
    with http_server(bundle, tmp_path, env=env) as server:
        photo = noise(1_180)
        ask = {"content": photo, "headers": {"content-type": "image/bmp"}, "params": {"labels": ["a", "b"]}}
        assert 0.9 * size < len(photo) < size
        assert 200 == httpx.post(f"{server.url}/v1/classify", timeout=PATIENCE_S, **ask).status_code  # type: ignore[arg-type]
        before = number(server, "process_resident_memory_bytes")
        with ExitStack() as clients:
            for _ in range(60):
                clients.enter_context(stalled(server, size, declared=declared))
                assert held(server) <= limit
            wait_until(lambda: number(server, "anyclass_bodies_refused_total") >= 50)
            assert limit // 2 < held(server) <= limit
            # All bodies together have 240 MiB.
            assert number(server, "process_resident_memory_bytes") - before < 100 * MIB
        wait_until(lambda: held(server) == 0)
        assert 200 == httpx.post(f"{server.url}/v1/classify", timeout=PATIENCE_S, **ask).status_code  # type: ignore[arg-type]
        assert 0 == held(server)


def test_a_stalled_body_times_out(bundle: Path, tmp_path: Path) -> None:
    """It is answered with 408, and its bytes are free although the client is still connected."""
    env = {"ANYCLASS_MAX_BODY_BYTES": str(MIB), "ANYCLASS_REQUEST_TIMEOUT_S": "2"}
    with http_server(bundle, tmp_path, env=env) as server, stalled(server, MIB) as connection:
        assert connection.recv(1024).startswith(b"HTTP/1.1 408 ")
        wait_until(lambda: held(server) == 0)


def test_a_limit_below_one_body_does_not_keep_that_one_out(bundle: Path, tmp_path: Path) -> None:
    """The limit for all bodies is never less than the limit for one."""
    env = {"ANYCLASS_MAX_TOTAL_BODY_BYTES": "1"}
    with http_server(bundle, tmp_path, env=env) as server:
        given = {"headers": {"content-type": "image/bmp"}, "params": {"labels": ["a"]}}
        answer = httpx.post(f"{server.url}/v1/classify", content=noise(100), timeout=PATIENCE_S, **given)  # type: ignore[arg-type]
        assert 200 == answer.status_code


TEXT = base64.b64encode(bytes(1000)).decode()
REQUESTS: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/classify"): {"image": TEXT, "labels": ["a"]},
    ("POST", "/v1/classify/batch"): {"images": [TEXT], "labels": ["a"]},
    ("PUT", "/v1/label-sets/animals"): {"labels": ["a" * 1000]},
    ("POST", "/v1/embeddings"): {"input": "a" * 1000},
    ("POST", "/v1/batches"): {"input_file_id": "a" * 1000},
    ("POST", "/"): {"inputs": TEXT, "parameters": {"candidate_labels": ["a"]}},
    ("POST", "/models/tiny"): {"inputs": TEXT, "parameters": {"candidate_labels": ["a"]}},
    ("POST", "/v2/models/tiny/infer"): {"inputs": [{"name": "text", "shape": [1], "data": ["a" * 1000]}]},
}


def message_of(path: str, body: dict[str, Any]) -> str:
    """Return the message of an error in the form of the path's protocol."""
    if path.startswith(("/v1/embeddings", "/v1/batches")):
        assert ("rate_limit_error", "rate_limit_exceeded") == (body["error"]["type"], body["error"]["code"])
        return str(body["error"]["message"])
    if path.startswith(("/v1/classify", "/v1/label-sets")):
        assert "urn:anyclass:problem:overloaded" == body["type"]
        return str(body["detail"])
    assert ["error"] == list(body)
    return str(body["error"])


def test_every_protocol_refuses_a_body_over_the_budget(bundle: Path, tmp_path: Path) -> None:
    """The answer is 429 with Retry-After in the protocol's own form, with or without a declared length."""
    env = {"ANYCLASS_MAX_BODY_BYTES": str(MIB), "ANYCLASS_MAX_TOTAL_BODY_BYTES": str(MIB)}
    with http_server(bundle, tmp_path, env=env) as server, stalled(server, MIB):
        wait_until(lambda: held(server) == MIB - 1)
        for (method, path), body in REQUESTS.items():
            content = json.dumps(body).encode()
            for sent in (content, iter([content])):
                headers = {"content-type": "application/json"}
                answer = httpx.request(method, server.url + path, content=sent, headers=headers, timeout=PATIENCE_S)
                assert (path, 429, "2") == (path, answer.status_code, answer.headers["retry-after"])
                assert "close" == answer.headers["connection"]
                assert "Too many bytes of requests are in memory; try again later." == message_of(path, answer.json())
