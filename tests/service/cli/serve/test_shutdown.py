"""The end of a process under load, as an orchestrator and its clients see it."""

import contextlib
import http.client
import io
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle

WORKERS = 8
PATIENCE_S = 30.0


@pytest.fixture(params=[1, 2], ids=["one process", "two"])
def env(request: pytest.FixtureRequest) -> dict[str, str]:
    """Of a service of one process, and of two on one port."""
    return {"ANYCLASS_WORKERS": str(request.param)}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that loads quickly."""
    return write_tiny_bundle(tmp_path / "bundle")


def photo() -> bytes:
    """Make a photo-like JPEG."""
    buffer = io.BytesIO()
    Image.effect_noise((320, 240), 90).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_sigterm_under_load_loses_no_request(bundle: Path, tmp_path: Path, env: dict[str, str]) -> None:
    """Clients that go on until the service is not ready, or refuses new connections, get every answer; then exit 0."""
    image = photo()
    answered: list[int] = []
    moved_on = threading.Event()

    def use(server: HttpServer, number: int) -> None:
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as client:
            while not moved_on.is_set():
                # Labels of one's own, so that text work is on its way too.
                labels = [f"user {number}", f"answer {len(answered)}"]
                form: dict[str, Any] = {"files": {"image": ("photo.jpg", image)}, "data": {"labels": labels}}
                try:
                    answered.append(client.post("/v1/classify", **form).status_code)
                except httpx.ConnectError:
                    return  # refused, so never accepted; any other failure is a lost request

    with http_server(bundle, tmp_path, env=env) as server, ThreadPoolExecutor(WORKERS) as pool:
        users = [pool.submit(use, server, number) for number in range(WORKERS)]
        until(lambda: len(answered) > 2 * WORKERS)
        server.process.send_signal(signal.SIGTERM)
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as prober:
            with contextlib.suppress(httpx.ConnectError):
                until(lambda: prober.get("/readyz").status_code == 503)
            moved_on.set()
        for user in users:
            user.result(PATIENCE_S)
        assert 0 == server.wait()
        assert {200} == set(answered)
        assert ["stopping", "stopped"] == [
            line["event"] for line in server.logs() if line["event"] in ("stopping", "stopped") and "worker" not in line
        ]


def begin_upload(server: HttpServer, image: bytes) -> http.client.HTTPConnection:
    """Send half of a request that the service thereby has accepted."""
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=PATIENCE_S)
    connection.putrequest("POST", "/v1/classify?labels=a&labels=b")
    connection.putheader("Content-Type", "image/jpeg")
    connection.putheader("Content-Length", str(len(image)))
    connection.endheaders()
    connection.send(image[: len(image) // 2])
    return connection


def port_is_closed(server: HttpServer) -> bool:
    """Whether new connections are refused."""
    try:
        httpx.get(f"{server.url}/livez")
    except httpx.ConnectError:
        return True
    return False


def in_flight(server: HttpServer) -> int:
    """How many requests are being answered, this one among them."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return int(float(next(line for line in lines if line.startswith("anyclass_http_requests_in_flight ")).split()[1]))


def test_a_request_that_was_begun_is_answered_after_the_port_has_closed(
    bundle: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    """A request whose body is still coming in when the end is asked for is waited for."""
    image = photo()
    with http_server(bundle, tmp_path, env=env) as server:
        connection = begin_upload(server, image)
        until(lambda: in_flight(server) == 2)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: port_is_closed(server))
        connection.send(image[len(image) // 2 :])
        answer = connection.getresponse()
        assert 200 == answer.status
        answer.read()
        connection.close()
        assert 0 == server.wait()


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(
    bundle: Path, tmp_path: Path, env: dict[str, str], second: signal.Signals
) -> None:
    """Whoever cannot wait for a request that hangs says so twice; the exit code tells that it was cut short."""
    with http_server(bundle, tmp_path, env=env) as server:
        connection = begin_upload(server, photo())
        until(lambda: in_flight(server) == 2)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: any(line["event"] == "stopping" for line in server.logs()))
        server.process.send_signal(second)
        assert 1 == server.wait()
        connection.close()


def test_the_wait_for_requests_is_bounded(bundle: Path, tmp_path: Path, env: dict[str, str]) -> None:
    """A request that never ends does not keep the process for ever."""
    with http_server(bundle, tmp_path, env=env | {"ANYCLASS_DRAIN_TIMEOUT_S": "1"}) as server:
        connection = begin_upload(server, photo())
        until(lambda: in_flight(server) == 2)
        assert server.stop() in (0, 1)
        connection.close()


def test_idle_connections_do_not_delay_the_end(bundle: Path, tmp_path: Path, env: dict[str, str]) -> None:
    """A client that keeps its connection open for later is not waited for."""
    with http_server(bundle, tmp_path, env=env) as server, httpx.Client(base_url=server.url) as client:
        client.get("/livez")
        began = time.monotonic()
        assert 0 == server.stop()
        assert time.monotonic() - began < 15
