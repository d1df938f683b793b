"""Shutdown under load, as an orchestrator and clients see it."""

import asyncio
import contextlib
import http.client
import io
import json
import select
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import structlog
from PIL import Image

from service.app import create_app
from service.cli.serve import server as server_module
from service.cli.serve.server import Server, bind
from service.monitoring import logs
from service.settings import Settings
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle
from tests.support.waiting import wait_until

WORKERS = 8
TIMEOUT_S = 30.0


@pytest.fixture(params=[1, 2], ids=["one process", "two"])
def env(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the environment of a service with one process, and with two."""
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


def test_sigterm_under_load_loses_no_request(bundle: Path, tmp_path: Path, env: dict[str, str]) -> None:
    """Clients that continue until the service is not ready get every answer; the exit code is 0."""
    image = photo()
    answered: list[int] = []
    moved_on = threading.Event()

    def use(server: HttpServer, number: int) -> None:
        with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as client:
            while not moved_on.is_set():
                # Unique labels, so that text is encoded too.
                labels = [f"user {number}", f"answer {len(answered)}"]
                form: dict[str, Any] = {"files": {"image": ("photo.jpg", image)}, "data": {"labels": labels}}
                try:
                    answered.append(client.post("/v1/classify", **form).status_code)
                except httpx.ConnectError:
                    return  # refused, so never accepted; any other failure is a lost request

    with http_server(bundle, tmp_path, env=env) as server, ThreadPoolExecutor(WORKERS) as pool:
        users = [pool.submit(use, server, number) for number in range(WORKERS)]
        wait_until(lambda: len(answered) > 2 * WORKERS)
        server.process.send_signal(signal.SIGTERM)
        with httpx.Client(base_url=server.url, timeout=TIMEOUT_S) as prober:
            with contextlib.suppress(httpx.ConnectError):
                wait_until(lambda: prober.get("/readyz").status_code == 503)
            moved_on.set()
        for user in users:
            user.result(TIMEOUT_S)
        assert 0 == server.wait()
        assert {200} == set(answered)
        assert ["stopping", "stopped"] == [
            line["event"] for line in server.logs() if line["event"] in ("stopping", "stopped") and "worker" not in line
        ]


def begin_upload(server: HttpServer, image: bytes) -> http.client.HTTPConnection:
    """Send half of a request, which the service has then accepted."""
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_S)
    connection.putrequest("POST", "/v1/classify?labels=a&labels=b")
    connection.putheader("Content-Type", "image/jpeg")
    connection.putheader("Content-Length", str(len(image)))
    connection.endheaders()
    connection.send(image[: len(image) // 2])
    return connection


def port_is_closed(server: HttpServer) -> bool:
    """Return whether new connections are refused."""
    try:
        httpx.get(f"{server.url}/livez")
    except httpx.ConnectError:
        return True
    return False


def in_flight(server: HttpServer) -> int:
    """Return the number of requests in flight, including this one."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return int(float(next(line for line in lines if line.startswith("anyclass_http_requests_in_flight ")).split()[1]))


def test_a_request_that_was_begun_is_answered_after_the_port_has_closed(
    bundle: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    """The shutdown waits for a request whose body is still arriving."""
    image = photo()
    with http_server(bundle, tmp_path, env=env) as server:
        connection = begin_upload(server, image)
        wait_until(lambda: in_flight(server) == 2)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: port_is_closed(server))
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
    """A second signal stops the wait for a hanging request; the exit code says that it was cut short."""
    with http_server(bundle, tmp_path, env=env) as server:
        connection = begin_upload(server, photo())
        wait_until(lambda: in_flight(server) == 2)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: any(line["event"] == "stopping" for line in server.logs()))
        server.process.send_signal(second)
        assert 1 == server.wait()
        connection.close()


def test_the_wait_for_requests_is_bounded(bundle: Path, tmp_path: Path, env: dict[str, str]) -> None:
    """A request that never ends does not keep the process alive."""
    with http_server(bundle, tmp_path, env=env | {"ANYCLASS_DRAIN_TIMEOUT_S": "1"}) as server:
        connection = begin_upload(server, photo())
        wait_until(lambda: in_flight(server) == 2)
        assert server.stop() in (0, 1)
        connection.close()


def test_idle_connections_do_not_delay_the_end(bundle: Path, tmp_path: Path, env: dict[str, str]) -> None:
    """The shutdown does not wait for idle connections, which may stay idle for longer than this test waits."""
    for_hours = {"ANYCLASS_DRAIN_TIMEOUT_S": "3600", "ANYCLASS_KEEP_ALIVE_S": "3600"}
    with http_server(bundle, tmp_path, env=env | for_hours) as server, httpx.Client(base_url=server.url) as client:
        client.get("/livez")
        assert 0 == server.stop()


def test_a_request_on_a_connection_that_was_just_used_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have been sent before the client knew of the stop; its answer closes the connection."""
    monkeypatch.setattr(server_module, "_IDLE_S", TIMEOUT_S)
    listener = bind("127.0.0.1", 0)
    server = Server(create_app(Settings(model=write_tiny_bundle(tmp_path / "bundle"))), Settings())
    thread = threading.Thread(target=server.run_on, args=[listener])
    thread.start()
    connection = http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=TIMEOUT_S)
    connection.request("GET", "/livez")
    assert b'{"status":"alive"}' == connection.getresponse().read()
    server.handle_exit(signal.SIGTERM, None)
    wait_until(lambda: server.should_exit)
    assert connection.sock is not None
    readable, _, _ = select.select([connection.sock], [], [], 1.0)
    assert [] == readable
    connection.request("GET", "/livez")
    answer = connection.getresponse()
    assert (200, "close") == (answer.status, answer.headers["connection"])
    connection.close()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


@pytest.mark.usefixtures("restored_logging")
async def test_the_stop_is_logged_for_no_request() -> None:
    """A signal interrupts the task of a request now and then; its id is not in the log of the stop."""
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    app = await asyncio.to_thread(create_app, Settings())
    server = Server(app, Settings())
    server._loop = asyncio.get_running_loop()
    structlog.contextvars.bind_contextvars(request_id="of-a-client")
    server.handle_exit(signal.SIGTERM, None)
    handled = asyncio.Event()
    server._loop.call_soon_threadsafe(handled.set)  # in the order of the calls
    await handled.wait()
    (line,) = [json.loads(each) for each in stream.getvalue().splitlines()]
    assert ("stopping", "SIGTERM") == (line["event"], line["signal"])
    assert "request_id" not in line
