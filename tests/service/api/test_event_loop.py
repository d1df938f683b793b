"""No request keeps the event loop busy for long, whatever its body, query or headers."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from pydantic import SecretStr
from starlette.types import Message

from service.app import create_app
from service.cli.serve.http_limits import MAX_HEADERS
from service.settings import Settings
from tests.bench.hostile import REQUESTS, Hostile
from tests.support.loop_watch import loop_watch, older_objects_frozen

BODY_BYTES = 2**20
LONGEST_S = 0.02
PIECE_BYTES = 2**16
TRIES = 3
"""A first request builds what later ones use; what a request's content costs, it costs every time."""
PARTS = 8
"""All requests in one test would take minutes on a busy machine."""


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    """The service with the demo model, its default limits, and a state of its own."""
    return create_app(Settings(state_url=SecretStr(str(tmp_path / "state"))))


async def ready(app: FastAPI) -> None:
    """Wait until the models are loaded."""
    loaded = asyncio.Event()
    app.state.services.lifecycle.when_ready(lambda _: loaded.set())
    if not app.state.services.lifecycle.ready:
        await asyncio.wait_for(loaded.wait(), 60)


def receiver(body: bytes) -> Callable[[], Awaitable[Message]]:
    """Return what an application receives a body from, piece by piece."""
    pieces: Iterator[int] = iter(range(0, len(body) or 1, PIECE_BYTES))

    async def receive() -> Message:
        await asyncio.sleep(0)
        if (at := next(pieces, None)) is None:
            await asyncio.Event().wait()
        end = (at or 0) + PIECE_BYTES
        return {"type": "http.request", "body": body[at:end], "more_body": end < len(body)}

    return receive


async def answered(app: FastAPI, request: Hostile) -> int:
    """Send a request to the application; return the status of its answer."""
    query = request.target.partition("?")[2]
    # The server refuses more headers before the application; `make bench-stalls` sends them all to it.
    headers = [("Content-Length", str(len(request.body))), *request.headers][:MAX_HEADERS]
    scope = {
        "type": "http",
        "method": request.method,
        "path": request.path,
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers],
        "state": {},
    }
    statuses: list[int] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    await app(scope, receiver(request.body), send)
    return statuses[0]


@pytest.mark.parametrize("part", range(PARTS))
async def test_no_request_blocks_the_event_loop(app: FastAPI, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    """The costliest requests for each route and each parser take turns with others, and are no server errors."""
    late: dict[str, str] = {}
    with older_objects_frozen():
        async with app.router.lifespan_context(app):
            await ready(app)
            await answered(app, Hostile("GET", "/livez"))  # the first request builds the application
            for name in list(REQUESTS)[part::PARTS]:
                request = REQUESTS[name](BODY_BYTES)
                for _ in range(TRIES):
                    with loop_watch(monkeypatch) as watch:
                        status = await asyncio.create_task(answered(app, request))
                    if watch.longest_s <= LONGEST_S or status >= 500:
                        break
                if watch.longest_s > LONGEST_S or status >= 500:
                    late[name] = f"{status}, {watch.longest_s * 1_000:.0f} ms: {watch.callback}"
    assert {} == late


def test_every_route_has_a_costly_request(app: FastAPI) -> None:
    """A new route needs a request in `tests.bench.hostile`."""
    requests = [make(0) for make in REQUESTS.values()]
    templates = {(each.method, app.state.services.routes.template(each.method, each.path)) for each in requests}
    sent = {(method, (template or "").replace(":path}", "}")) for method, template in templates}
    paths = app.openapi()["paths"].items()
    assert set() == {(method.upper(), path) for path, methods in paths for method in methods} - sent


async def test_metrics_do_not_wait_for_other_work(app: FastAPI) -> None:
    """`/metrics` is answered while every thread of the default executor is busy."""
    loop = asyncio.get_running_loop()
    executor = ThreadPoolExecutor(1)
    loop.set_default_executor(executor)
    release = asyncio.Event()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        busy = loop.run_in_executor(None, asyncio.run_coroutine_threadsafe(release.wait(), loop).result)
        try:
            answer = await asyncio.wait_for(client.get("/metrics"), 30)
        finally:
            release.set()
            await busy
    assert (200, True) == (answer.status_code, "anyclass_build_info" in answer.text)


async def test_a_long_query_is_refused_where_the_body_has_the_fields(app: FastAPI) -> None:
    """The framework would parse it on the event loop, for a probe too; labels beside a picture may be many."""
    query = "&".join(["a=b"] * 2_000)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        answer = await client.get(f"/livez?{query}")
        assert (400, "malformed-request") == (answer.status_code, answer.json()["type"].rpartition(":")[2])
        assert "4096 bytes" in answer.json()["detail"]
        assert 200 == (await client.get("/livez?a=b")).status_code
