"""Limits on what the service buffers for a client that never completes a request."""

import asyncio
import contextlib
import http.client
import json
import resource
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from service.cli.serve.http_limits import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED, HttpLimitsProtocol
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle
from tests.support.waiting import wait_until

MIB = 2**20
LIVEZ = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = (
    b"POST /v1/classify?labels=a HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """One process for all tests of this module."""
    folder = tmp_path_factory.mktemp("http-limits")
    with http_server(write_tiny_bundle(folder / "bundle"), folder) as running:
        yield running


def memory(server: HttpServer) -> int:
    """Resident bytes of the process."""
    lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
    return int(float(next(line for line in lines if line.startswith("process_resident_memory_bytes ")).split()[1]))


def exchange(server: HttpServer, *pieces: bytes) -> bytes:
    """Send `pieces` until the server closes the connection, and return what it answered."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        answer = b""
        # A reset also ends the stream, and may arrive before the answer was read.
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                client.sendall(piece)
        with contextlib.suppress(ConnectionError):
            while received := client.recv(65_536):
                answer += received
        return answer


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nX-A: ", b"a" * MIB),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n", b"X-A: bbbbbbbb\r\n" * 70_000),
        (b"GET /", b"a" * MIB),
        (CHUNKED + b"1\r\na\r\n0\r\nX-A: ", b"a" * MIB),
    ],
    ids=["a long header", "many headers", "a long path", "a long trailer"],
)
def test_a_head_without_end_is_cut_off(server: HttpServer, begin: bytes, more: bytes) -> None:
    """The connection closes, and the 64 MiB on their way take no memory."""
    before = memory(server)
    answer = exchange(server, begin, *[more] * 64)
    assert memory(server) - before < 16 * MIB
    if answer:
        assert b" 400 Bad Request" in answer
        assert "urn:anyclass:problem:malformed-http" == json.loads(answer.rpartition(b"\r\n\r\n")[2])["type"]


def test_requests_sent_ahead_of_their_answers_are_few(server: HttpServer) -> None:
    """A million would take gigabytes of memory; the connection closes at once."""
    before = memory(server)
    exchange(server, *[LIVEZ * 10_000] * 100)
    assert memory(server) - before < 64 * MIB


def test_a_few_requests_may_be_sent_ahead(server: HttpServer) -> None:
    """MAX_PIPELINED waiting requests are answered, besides the current one."""
    last = LIVEZ.replace(b"Host", b"Connection: close\r\nHost")
    assert MAX_PIPELINED + 1 == exchange(server, LIVEZ * MAX_PIPELINED + last).count(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(("headers", "status"), [(MAX_HEADERS - 2, 200), (MAX_HEADERS + 1, 400)])
def test_headers_are_few(server: HttpServer, headers: int, status: int) -> None:
    """Each of them costs time whenever one is looked for, so their number is limited as well as their bytes."""
    answer = exchange(server, LIVEZ[:-2] + b"Connection: close\r\n" + b"a:b\r\n" * headers + b"\r\n")
    assert f"HTTP/1.1 {status} ".encode() in answer
    if status != 200:
        assert "The request has more than 256 headers." == json.loads(answer.rpartition(b"\r\n\r\n")[2])["detail"]


def test_a_query_may_be_long(server: HttpServer) -> None:
    """Thousands of labels fit beside a picture as the body: the picture is at fault, not the head."""
    query = "&".join(f"labels=label+number+{number}" for number in range(2_500))
    assert 50_000 < len(query) < MAX_HEAD_BYTES
    given: dict[str, Any] = {"content": b"not a picture", "headers": {"content-type": "image/png"}, "timeout": 60}
    answer = httpx.post(f"{server.url}/v1/classify?{query}", **given)
    assert (415, "urn:anyclass:problem:unsupported-image-format") == (answer.status_code, answer.json()["type"])


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"HTTP/1.1\r\nHost: x", 200),
        (b"HTTP/1.1\r\nHost:", 200),
        (b"HTTP/1.1\r\nHost: [::1]:8000", 200),
        (b"HTTP/1.0", 200),
        (b"HTTP/1.1", 400),
        (b"HTTP/1.1\r\nHost: x\r\nHost: x", 400),
        (b"HTTP/1.0\r\nHost: x\r\nhost: y", 400),
        (b"HTTP/1.1\r\nHost: x/y", 400),
        (b"HTTP/1.1\r\nHost: a b", 400),
        (b"HTTP/1.1\r\nHost: \xc3\xa4", 400),
    ],
)
def test_a_request_names_one_host(server: HttpServer, head: bytes, status: int) -> None:
    """Any other is answered 400, with a problem that names the header (RFC 9112, section 3.2)."""
    answer = exchange(server, b"GET /livez " + head + b"\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    if status == 400:
        assert "Host" in json.loads(answer.rpartition(b"\r\n\r\n")[2])["detail"]


def test_a_process_without_free_descriptors_says_so(tmp_path: Path) -> None:
    """It logs it once, and counts the seconds; libuv closes the connections without a word."""
    with http_server(write_tiny_bundle(tmp_path / "bundle"), tmp_path) as server, contextlib.ExitStack() as clients:
        pid = server.process.pid
        host, port = server.url.removeprefix("http://").split(":")
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = max(int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir())
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 4, before[1]))
        for _ in range(used + 8):
            clients.enter_context(socket.create_connection((host, int(port))))
        wait_until(lambda: any(line["event"] == "connections cannot be accepted" for line in server.logs()))
        clients.close()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
        (count,) = (line.split()[1] for line in lines if line.startswith("anyclass_out_of_descriptors_total "))
        assert float(count) >= 1


class Impatient(HttpLimitsProtocol):
    """Waits 50 ms for a head."""

    head_timeout_s = 0.05


@pytest.mark.parametrize("begin", [b"", b"GET /livez HTTP/1.1\r\n"], ids=["nothing", "half a head"])
async def test_an_incomplete_head_times_out(begin: bytes) -> None:
    """An idle connection costs memory too."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("asked")

    config = uvicorn.Config(app, log_config=None)
    config.load()
    make = lambda: Impatient(config=config, server_state=ServerState(), app_state={})  # noqa: E731
    async with await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0) as listening:
        reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
        writer.write(begin)
        async with asyncio.timeout(60):
            assert b"" == await reader.read()
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("env", "idle_s", "open_after"), [({"ANYCLASS_KEEP_ALIVE_S": "1"}, 3.0, False), ({}, 6.0, True)]
)
def test_a_connection_without_requests_stays_open_as_long_as_is_set(
    tmp_path: Path, env: dict[str, str], idle_s: float, open_after: bool
) -> None:
    """The default is longer than a proxy's: uvicorn's five seconds cause an occasional 502 behind one."""
    with http_server(write_tiny_bundle(tmp_path / "bundle"), tmp_path, env=env) as server:
        connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
        connection.request("GET", "/livez")
        connection.getresponse().read()
        assert connection.sock is not None
        readable, _, _ = select.select([connection.sock], [], [], idle_s)
        assert open_after is (readable == [])
        connection.close()
