import asyncio
import io
import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
import uvicorn
from fastapi import FastAPI
from PIL import Image

from service.app import create_app
from service.errors import BundleError, NonFiniteOutput
from service.inference.registry import ModelRegistry
from service.model.choices import ChosenBy
from service.model.loading import load_bundle
from service.monitoring import logs
from service.monitoring.metrics import Metrics
from service.settings import Settings
from service.vector_cache.caches import MemoryVectorCache
from tests.support.classifying import until
from tests.support.tiny_bundle import DIM, write_tiny_bundle

PATIENCE_S = 30.0


def picture(colour: tuple[int, int, int]) -> bytes:
    """Make a PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, GREEN = picture((255, 0, 0)), picture((0, 255, 0))


class GatedEngine:
    """An engine that answers red images at once, and all others when the gate opens."""

    dim = DIM
    provider = "gated"
    precision = "fp32"
    provider_reason = "a test asked for it"
    chosen_by: ChosenBy = "name"
    cpu_threads = 1

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.images = 0

    def encode_images(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See `Engine`."""
        if pixels[..., 1].any():
            assert self.gate.wait(PATIENCE_S)
        self.images += len(pixels)
        return self._vectors(len(pixels))

    def encode_texts(self, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See `Engine`."""
        return self._vectors(len(ids))

    def close(self) -> None:
        """See `Engine`."""
        self.gate.set()

    def _vectors(self, count: int) -> np.ndarray[Any, Any]:
        vectors = np.zeros((count, DIM), np.float32)
        vectors[:, 0] = 1
        return vectors


class SlowToWarm(ModelRegistry):
    """A registry that becomes warm when its gate opens."""

    gate: threading.Event

    def warm(self) -> None:
        """See `ModelRegistry`."""
        assert self.gate.wait(PATIENCE_S)
        super().warm()


@pytest.fixture(autouse=True)
def log() -> Iterator[io.StringIO]:
    """Log as `anyclass serve` does, and restore the process's logging afterwards."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    stream = io.StringIO()
    logs.configure("info", "json", stream)
    yield stream
    root.handlers[:], level = before
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle that loads quickly."""
    return write_tiny_bundle(tmp_path / "bundle")


async def until_ready(client: httpx.AsyncClient) -> None:
    """Wait until the service says that it is ready."""
    async with asyncio.timeout(PATIENCE_S):
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - it is a probe
            await asyncio.sleep(0.01)


@asynccontextmanager
async def running(app: FastAPI, *, ready: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """The application with its lifespan, and a client that speaks to it without a network."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        if ready:
            await until_ready(client)
        yield client


@asynccontextmanager
async def listening(app: FastAPI) -> AsyncIterator[str]:
    """The application behind real connections, in this event loop; gives its URL."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="on", ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server._serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn sets no event
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await until_ready(client)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving


async def build(settings: Settings, **parts: Any) -> FastAPI:
    """An application, made where it may read files."""
    return await asyncio.to_thread(create_app, settings, **parts)


def gated(bundle: Path, settings: Settings) -> tuple[FastAPI, GatedEngine]:
    """Make an application around an engine with a gate."""
    engine = GatedEngine()
    models = ModelRegistry.of([(load_bundle(bundle), engine)], settings, Metrics())
    return create_app(settings, models=models), engine


def decoded(app: FastAPI) -> float:
    """Return the number of decoded images; each is admitted before, and given to its device at once after."""
    metrics: Metrics = app.state.services.metrics
    labels = {"model": "tiny", "stage": "decode"}
    return metrics.registry.get_sample_value("anyclass_stage_seconds_count", labels) or 0.0


async def test_the_port_is_open_before_the_model_is_warm(bundle: Path) -> None:
    """While loading the service is alive and not ready, with the reason; requests get a Retry-After."""
    settings = Settings(model=bundle, provider="cpu")
    models = await asyncio.to_thread(SlowToWarm.load, settings, Metrics())
    models.gate = threading.Event()
    async with running(await build(settings, models=models), ready=False) as client:
        assert 200 == (await client.get("/livez")).status_code
        ready = await client.get("/readyz")
        assert (503, "1") == (ready.status_code, ready.headers["retry-after"])
        assert "being loaded" in ready.json()["detail"]
        for path in ("/v1/classify", "/v1/classify/batch"):
            assert "urn:anyclass:problem:not-ready" == (await client.post(path)).json()["type"]
        assert 503 == (await client.get("/v1/models")).status_code
        models.gate.set()
        await until_ready(client)
        assert 200 == (await client.get("/v1/models")).status_code


async def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    """The callback for a failed start is called, and the probes ask for a restart."""
    app = await build(Settings(model=tmp_path / "nowhere", provider="cpu"))
    failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
    app.state.services.lifecycle.when_failed(failed.set_result)
    async with running(app, ready=False) as client:
        assert isinstance(await failed, BundleError)
        for probe in ("/livez", "/readyz"):
            answer = await client.get(probe)
            assert 503 == answer.status_code
            assert "manifest.json" in answer.json()["detail"]


async def test_readiness_fails_first_when_stopping(bundle: Path) -> None:
    """A stopping service is not ready, still answers, and asks clients to close their connections."""
    app = await build(Settings(model=bundle, provider="cpu"))
    async with running(app) as client:
        app.state.services.lifecycle.stop()
        ready = await client.get("/readyz")
        assert (503, "close") == (ready.status_code, ready.headers["connection"])
        answer = await client.post("/v1/classify", files={"image": ("a", RED)}, data={"labels": "red"})
        assert (200, "close") == (answer.status_code, answer.headers["connection"])


class RecordingCache(MemoryVectorCache):
    """A memory cache that tells when it is closed."""

    def __init__(self, closed: list[str]) -> None:
        super().__init__(100, Metrics())
        self._closed = closed

    async def close(self) -> None:
        """See `VectorCache`."""
        self._closed.append("cache")


class RecordingRegistry(ModelRegistry):
    """A registry that tells when it is closed."""

    closed: list[str]

    async def close(self, timeout_s: float = 5.0) -> None:
        """See `ModelRegistry`."""
        self.closed.append("models")
        await super().close(timeout_s)


async def test_what_was_opened_is_closed_in_reverse(bundle: Path) -> None:
    """The models go before the cache that they were opened after."""
    closed: list[str] = []
    settings = Settings(model=bundle, provider="cpu")
    models = await asyncio.to_thread(RecordingRegistry.load, settings, Metrics())
    models.closed = closed
    async with running(await build(settings, models=models, text_cache=RecordingCache(closed))):
        assert [] == closed
    assert ["models", "cache"] == closed


async def test_an_unexpected_error_is_a_500_without_internals(bundle: Path, log: io.StringIO) -> None:
    """The client learns the request id and nothing else; the log has the traceback under it."""
    app = await build(Settings(model=bundle, provider="cpu"))

    async def explode() -> None:
        raise RuntimeError("the secret plan")

    app.add_api_route("/explode", explode)
    async with running(app) as client:
        answer = await client.get("/explode", headers={"x-request-id": "r-500"})
    assert (500, "application/problem+json") == (answer.status_code, answer.headers["content-type"])
    assert ("urn:anyclass:problem:internal", "r-500") == (answer.json()["type"], answer.json()["request_id"])
    assert "secret" not in answer.text
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    (error,) = [line for line in lines if line["event"] == "unexpected error"]
    assert "r-500" == error["request_id"]
    assert "in explode" in error["exception"]
    assert "RuntimeError: the secret plan" in error["exception"]


class RedIsTooMuch(GatedEngine):
    """An engine that fails on red pictures."""

    def encode_images(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """See `Engine`."""
        if pixels[..., 0].any():
            raise NonFiniteOutput("The model gave no usable answer for this image.")
        return self._vectors(len(pixels))


async def test_a_failing_model_is_a_500_and_fails_no_neighbour(bundle: Path) -> None:
    """NaN from the model never reaches the JSON; in a batch it is that image's own problem."""
    settings = Settings(max_batch=1)

    def models() -> ModelRegistry:
        return ModelRegistry.of([(load_bundle(bundle), RedIsTooMuch())], settings, Metrics())

    files = [("image", ("red", RED)), ("image", ("green", GREEN))]
    async with running(await build(settings, models=await asyncio.to_thread(models))) as client:
        answer = await client.post("/v1/classify", files=files[:1], data={"labels": "red"})
        assert (500, "urn:anyclass:problem:non-finite-output") == (answer.status_code, answer.json()["type"])
        batch = await client.post("/v1/classify/batch", files=files, data={"labels": "red"})
        assert ["error", "predictions"] == [list(result)[1] for result in batch.json()["results"]]


async def test_a_line_is_sent_as_soon_as_it_is_known(bundle: Path) -> None:
    """The first result of a streamed batch arrives while the second picture is still being worked on."""
    # With one thread the red picture is decoded first, and so reaches the device first.
    settings = Settings(model=bundle, max_batch=1, decode_threads=1)
    app, engine = await asyncio.to_thread(gated, bundle, settings)
    files = [("image", ("red", RED)), ("image", ("green", GREEN))]
    headers = {"accept": "application/x-ndjson"}
    async with listening(app) as url, httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        request = client.stream("POST", "/v1/classify/batch", files=files, data={"labels": "red"}, headers=headers)
        async with request as answer:
            lines = answer.aiter_lines()
            assert 0 == json.loads(await anext(lines))["index"]
            assert 1 == engine.images
            engine.gate.set()
            assert 1 == json.loads(await anext(lines))["index"]


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/classify/batch"])
async def test_a_client_that_hangs_up_has_its_work_dropped(bundle: Path, path: str) -> None:
    """Of the two pictures that wait behind a busy device, the one whose client has gone never reaches it."""
    app, engine = await asyncio.to_thread(gated, bundle, Settings(model=bundle, max_batch=1))
    metrics: Metrics = app.state.services.metrics

    def gone() -> float:
        protocol = "batch" if path.endswith("batch") else "own"
        labels = {"protocol": protocol, "method": "POST", "route": path, "status": "4xx"}
        return metrics.registry.get_sample_value("anyclass_http_requests_total", labels) or 0.0

    async with listening(app) as url, httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        # A batch decodes once its labels are computed, and the device has no time for them below.
        known = await client.post("/v1/classify", files={"image": ("red", RED)}, data={"labels": "red"})
        assert 200 == known.status_code
        form: Mapping[str, Any] = {"files": {"image": ("green", GREEN)}, "data": {"labels": "red"}}
        staying = asyncio.create_task(client.post("/v1/classify", **form))
        await until(lambda: decoded(app) == 2)
        leaving = asyncio.create_task(client.post(path, **form))
        await until(lambda: decoded(app) == 3)
        leaving.cancel()
        await until(lambda: gone() == 1)
        engine.gate.set()
        assert 200 == (await staying).status_code
        # One more goes through, so that whatever waited before it has had its turn.
        assert 200 == (await client.post("/v1/classify", **form)).status_code
    assert 3 == engine.images


async def test_overload_is_refused_with_a_time_to_come_again(bundle: Path) -> None:
    """What does not fit into the queue is a 429 at once."""
    app, engine = await asyncio.to_thread(gated, bundle, Settings(model=bundle, max_batch=1, max_waiting=1))
    form: Mapping[str, Any] = {"files": {"image": ("green", GREEN)}, "data": {"labels": "red"}}
    async with running(app) as client:
        accepted: list[asyncio.Task[httpx.Response]] = []
        refused: httpx.Response | None = None
        while refused is None and len(accepted) < 10:
            task = asyncio.create_task(client.post("/v1/classify", **form))
            await until(lambda task=task: task.done() or decoded(app) == len(accepted) + 1)
            if task.done():
                refused = await task
            else:
                accepted.append(task)
        assert refused is not None
        assert (429, "urn:anyclass:problem:overloaded") == (refused.status_code, refused.json()["type"])
        assert int(refused.headers["retry-after"]) >= 1
        engine.gate.set()
        assert [200] * len(accepted) == [(await task).status_code for task in accepted]
