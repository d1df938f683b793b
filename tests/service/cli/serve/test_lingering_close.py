"""A client that is still sending when it is refused gets its answer, with any HTTP library."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from service.cli.serve.lingering_close import LingeringProtocol
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle

KEY = "0123456789abcdef0123"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    """Run a service that needs a key, and accepts 100,000 bytes."""
    folder = tmp_path_factory.mktemp("lingering")
    env = {"ANYCLASS_API_KEYS": KEY, "ANYCLASS_MAX_BODY_BYTES": "100000"}
    with http_server(write_tiny_bundle(folder / "bundle"), folder, env=env) as running:
        yield running


async def test_a_refusal_reaches_a_client_that_goes_on_sending(server: HttpServer) -> None:
    """Without a key, and with a body that is far too large; repeated, because a race fails only sometimes."""
    async with httpx.AsyncClient(base_url=server.url) as client:
        for _ in range(10):
            answer = await client.post("/v1/classify", files={"image": b"x" * 1_000})
            assert 401 == answer.status_code
            answer = await client.post("/v1/classify", content=b"x" * 20_000_000, headers={"x-api-key": KEY})
            assert 413 == answer.status_code


async def test_the_end_of_the_stream_follows_the_answer(server: HttpServer) -> None:
    """A client sees it at once, and the connection closes when the client ends its side."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\nbegin")
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 401 ")
    writer.write(b"and go on")
    await writer.drain()
    writer.close()
    await writer.wait_closed()


class Transport(asyncio.Transport):
    """Counts the pauses between reads."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses = 0
        self.resumed = asyncio.Event()

    def pause_reading(self) -> None:
        """Count it."""
        self.pauses += 1
        self.resumed.clear()

    def resume_reading(self) -> None:
        """Note it."""
        self.resumed.set()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Drop it."""

    def write_eof(self) -> None:
        """Do nothing."""

    def can_write_eof(self) -> bool:
        """Return True."""
        return True

    def is_closing(self) -> bool:
        """Return False."""
        return False

    def close(self) -> None:
        """Do nothing."""

    def get_write_buffer_size(self) -> int:
        """Return 0."""
        return 0


@pytest.mark.parametrize("close", [True, False], ids=["the connection ends", "the connection stays"])
async def test_bytes_after_the_answer_are_discarded_with_pauses(close: bool) -> None:
    """Uvloop would read megabytes of one connection before it serves another."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"0"), *([(b"connection", b"close")] if close else [])]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, log_config=None)
    config.load()
    protocol = LingeringProtocol(config=config, server_state=ServerState(), app_state={})
    transport = Transport()
    protocol.connection_made(transport)
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n")
    async with asyncio.timeout(60):
        await asyncio.gather(*protocol.tasks)
        for number in range(3):
            protocol.data_received(b"x" * 1_000)
            assert number + 1 == transport.pauses
            await transport.resumed.wait()
    protocol.connection_lost(None)


def test_a_silent_client_is_disconnected(server: HttpServer) -> None:
    """The client neither sends nor closes: the server closes, after a while."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        while client.recv(65_536):
            pass
        while _is_open(int(port), client.getsockname()[1]):
            pass


def _is_open(port: int, client_port: int) -> bool:
    """Return whether the server's side of a local connection is still open."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, *_ = line.split()
        if (int(local.split(":")[1], 16), int(remote.split(":")[1], 16)) == (port, client_port):
            return state == "05"  # FIN_WAIT2: it has sent its FIN, and still reads
    return False
