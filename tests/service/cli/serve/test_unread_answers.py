"""A client that takes nothing of its answer is given up, however the answer is sent; a slow one is not."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from service.api.lifecycle import Lifecycle
from service.api.middleware.request_context import RequestContext
from service.api.problems.table import BodiesFull
from service.api.request.memory_budget import BufferedBody, MemoryBudget
from service.api.route_table import RouteTable
from service.cli.serve.server import ProblemHttpProtocol
from service.cli.serve.unread_answers import EVERY_S, PRESSED_BYTES, PRESSED_LIMIT_S, UnreadAnswers
from service.monitoring.metrics import Metrics
from tests.support.http_server import HttpServer, http_server
from tests.support.tiny_bundle import write_tiny_bundle

MIB = 2**20
ANSWER = bytes(16 * MIB)
PATIENCE_S = 60.0
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LIMIT_S = 20 * EVERY_S


class Connection:
    """A connection with `unsent_bytes` in the transport."""

    def __init__(self, unsent_bytes: int) -> None:
        self.unsent_bytes = unsent_bytes
        self.moved_bytes = 0
        self.aborted = False

    def abort(self) -> None:
        """End it."""
        self.aborted = True


class Watched:
    """An `UnreadAnswers` with its counts."""

    def __init__(self, *connections: Any, limit_s: float = LIMIT_S) -> None:
        self.metrics = Metrics()
        self.budget = MemoryBudget(100, self.metrics)
        self.pressed = False
        self.answers = UnreadAnswers(
            connections, self.budget, self.metrics, limit_s=limit_s, pressed=lambda: self.pressed
        )

    def looks_until(self, done: Callable[[], bool], *, before_each: Callable[[], None] = lambda: None) -> int:
        """Look until `done`; return the number of looks."""
        for looks in range(1, 1000):
            before_each()
            self.answers.look()
            if done():
                return looks
        raise AssertionError("never done")

    def count(self, metric: str) -> float | None:
        """Return the value of a metric."""
        return self.metrics.registry.get_sample_value(metric)


def test_a_client_that_takes_nothing_has_the_whole_limit() -> None:
    """Then its connection is aborted, once, and its bytes no longer count."""
    connection = Connection(60)
    watched = Watched(connection)
    assert 1 + LIMIT_S / EVERY_S == watched.looks_until(lambda: connection.aborted)
    assert 60 == watched.budget.unsent_bytes == watched.count("anyclass_unsent_bytes")
    connection.unsent_bytes = 0
    watched.answers.look()
    assert 0 == watched.budget.unsent_bytes == watched.count("anyclass_unsent_bytes")
    assert 1 == watched.count("anyclass_answers_unread_total")


def test_a_client_that_takes_a_byte_now_and_then_is_not_given_up() -> None:
    """Any progress within the limit counts."""
    connection = Connection(60)
    watched = Watched(connection)
    for _ in range(10):
        for _ in range(int(LIMIT_S / EVERY_S) - 1):
            watched.answers.look()
        connection.moved_bytes += 1
        watched.answers.look()
    assert not connection.aborted


def test_under_pressure_a_client_must_take_more_in_less_time() -> None:
    """A byte now and then is not enough any more; `PRESSED_BYTES` in `PRESSED_LIMIT_S` are."""
    slow, good = Connection(60), Connection(60)
    watched = Watched(slow, good, limit_s=10 * PRESSED_LIMIT_S)
    watched.pressed = True

    def read() -> None:
        slow.moved_bytes += 1
        good.moved_bytes += int(PRESSED_BYTES * EVERY_S / PRESSED_LIMIT_S) + 1

    assert 1 + PRESSED_LIMIT_S / EVERY_S == watched.looks_until(lambda: slow.aborted, before_each=read)
    slow.unsent_bytes = 0
    for _ in range(1000):
        read()
        watched.answers.look()
    assert not good.aborted


def test_unsent_bytes_leave_less_for_bodies() -> None:
    """They share the limit of the bodies."""
    watched = Watched(Connection(60))
    BufferedBody(watched.budget).check_fits(100)
    crowded = [watched.budget.crowded]
    watched.answers.look()
    assert [False, True] == [*crowded, watched.budget.crowded]
    BufferedBody(watched.budget).check_fits(40)
    with pytest.raises(BodiesFull):
        BufferedBody(watched.budget).check_fits(41)


async def _start(send: Send, *headers: tuple[bytes, bytes], length: int = len(ANSWER)) -> None:
    fields = [(b"content-length", str(length).encode()), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": fields})


async def _one_piece(_: Receive, send: Send) -> None:
    await _start(send)
    await send({"type": "http.response.body", "body": ANSWER})


async def _then_close(_: Receive, send: Send) -> None:
    await _start(send, (b"connection", b"close"))
    await send({"type": "http.response.body", "body": ANSWER})


async def _pieces(_: Receive, send: Send) -> None:
    await _start(send)
    for begin in range(0, len(ANSWER), MIB):
        await send({"type": "http.response.body", "body": bytes(MIB), "more_body": begin + MIB < len(ANSWER)})


async def _fails_midway(_: Receive, send: Send) -> None:
    await _start(send, length=len(ANSWER) + 1)
    await send({"type": "http.response.body", "body": ANSWER, "more_body": True})
    raise RuntimeError("on purpose")


async def _after_the_body(receive: Receive, send: Send) -> None:
    while (await receive())["more_body"]:
        pass
    await _one_piece(receive, send)


WAYS: dict[str, tuple[Callable[[Receive, Send], Awaitable[None]], bytes]] = {
    "one piece": (_one_piece, GET),
    "one piece, then close": (_then_close, GET),
    "pieces": (_pieces, GET),
    "an error midway": (_fails_midway, GET),
    "after a body": (_after_the_body, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"),
    "before the body, lingering": (_then_close, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nbody"),
    "several answers": (_one_piece, GET * 3),
}


def app_of(answer: Callable[[Receive, Send], Awaitable[None]]) -> ASGIApp:
    """Return an application with this answer."""

    async def app(_: Scope, receive: Receive, send: Send) -> None:
        await answer(receive, send)

    return app


@asynccontextmanager
async def answering(app: ASGIApp, request: bytes) -> AsyncIterator[tuple[Any, socket.socket]]:
    """Send a request from a client with a small buffer; yield the server's connection and the client."""
    config = uvicorn.Config(app, log_config=None)
    config.load()
    state = ServerState()
    make = lambda: ProblemHttpProtocol(config=config, server_state=state, app_state={})  # noqa: E731
    loop = asyncio.get_running_loop()
    async with await loop.create_server(make, "127.0.0.1", 0) as listening:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_304)
            client.setblocking(False)
            await loop.sock_connect(client, listening.sockets[0].getsockname())
            await loop.sock_sendall(client, request)
            await until(lambda: any(each.unsent_bytes > MIB / 2 for each in connections(state)))
            yield next(iter(connections(state))), client
            client.close()
            await until(lambda: not state.connections and not state.tasks)


def connections(state: ServerState) -> set[Any]:
    """Return the open connections."""
    found: set[Any] = set(state.connections)
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - nothing signals it
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(("way", "later"), [*((way, b"") for way in WAYS), ("one piece", b"no request\r\n\r\n")])
async def test_an_unread_answer_is_dropped(way: str, later: bytes) -> None:
    """The connection ends, the request too, although the client is still connected."""
    answer, request = WAYS[way]
    async with answering(app_of(answer), request) as (connection, client):
        if later:
            client.send(later)
            await until(connection.transport.is_closing)
        watched = Watched(connection)
        while connection in connection.connections:
            watched.answers.look()
            await asyncio.sleep(0.001)
        assert 1 == watched.count("anyclass_answers_unread_total")
        await until(lambda: not connection.tasks)


async def test_a_client_that_does_not_read_its_answer_is_dropped() -> None:
    """A client that sent a body and does not read the answer does not keep its bytes for ever."""
    budget = MemoryBudget(100, Metrics())

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["buffered_body"].add(100)
        await _pieces(receive, send)

    context = RequestContext(app, metrics=Metrics(), lifecycle=Lifecycle(), routes=RouteTable(), memory_budget=budget)
    async with answering(context, GET) as (connection, _):
        watched = Watched(connection)
        assert 100 == budget.used_bytes
        while connection in connection.connections:
            watched.answers.look()
            await asyncio.sleep(0.001)
        await until(lambda: not connection.tasks)
        assert 0 == budget.used_bytes


@pytest.mark.parametrize("way", ["one piece", "pieces"])
async def test_a_slow_reader_is_not_given_up(way: str) -> None:
    """Each step is seen, although the transport's buffer shrinks only in leaps."""
    async with answering(app_of(WAYS[way][0]), GET) as (connection, client):
        watched = Watched(connection, limit_s=2 * EVERY_S)
        loop = asyncio.get_running_loop()
        received = b""
        for _ in range(200):
            before = connection.moved_bytes
            while connection.moved_bytes == before:
                received += await loop.sock_recv(client, 1_000)
            watched.answers.look()
            watched.answers.look()
        assert received.startswith(b"HTTP/1.1 200 OK")
        assert 0 == watched.count("anyclass_answers_unread_total")


async def test_a_client_that_still_sends_is_not_given_up() -> None:
    """It may send a whole archive before it reads a line; once it stops, it is given up."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def read() -> None:
            while (await receive()).get("more_body"):
                pass

        reading = asyncio.create_task(read())
        await _pieces(receive, send)
        await reading

    request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    async with answering(app, request) as (connection, client):
        watched = Watched(connection, limit_s=2 * EVERY_S)
        for _ in range(100):
            before = connection.moved_bytes
            client.send(bytes(1_000))
            await until(lambda before=before: connection.moved_bytes >= before + 1_000)  # type: ignore[misc]
            watched.answers.look()
            watched.answers.look()
        assert 0 == watched.count("anyclass_answers_unread_total")
        while connection in connection.connections:
            watched.answers.look()
            await asyncio.sleep(0.001)


def value(server: HttpServer, metric: str) -> int:
    """Return the value of a metric without labels."""
    lines = httpx.get(f"{server.url}/metrics", timeout=PATIENCE_S).text.splitlines()
    return int(float(next(line for line in lines if line.startswith(f"{metric} ")).split()[1]))


def ask(server: HttpServer, request: bytes) -> socket.socket:
    """Send a request, with a small buffer for its answer."""
    host, port = server.url.removeprefix("http://").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2_304)
    client.connect((host, int(port)))
    client.sendall(request)
    return client


def test_unread_downloads_keep_neither_memory_nor_the_process(tmp_path: Path) -> None:
    """They count while they wait, are given up after the time of a request, and do not hold up SIGTERM."""
    with http_server(
        write_tiny_bundle(tmp_path / "bundle"), tmp_path, env={"ANYCLASS_REQUEST_TIMEOUT_S": "1"}
    ) as server:
        form: dict[str, Any] = {"files": {"file": ("x", ANSWER)}, "data": {"purpose": "batch"}}
        file_id = httpx.post(f"{server.url}/v1/files", timeout=PATIENCE_S, **form).json()["id"]
        request = f"GET /v1/files/{file_id}/content HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        with ExitStack() as clients:
            for _ in range(3):
                clients.enter_context(ask(server, request))
            end = time.monotonic() + PATIENCE_S
            seen = 0
            while value(server, "anyclass_answers_unread_total") < 3:
                seen = max(seen, value(server, "anyclass_unsent_bytes"))
                assert time.monotonic() < end
            assert seen > MIB / 2
            while value(server, "anyclass_http_requests_in_flight") > 1 or value(server, "anyclass_unsent_bytes"):
                assert time.monotonic() < end
            clients.enter_context(ask(server, request))
            began = time.monotonic()
            assert 0 == server.stop()
            assert time.monotonic() - began < 20
