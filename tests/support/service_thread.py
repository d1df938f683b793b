"""Run the service on a fake engine in a thread, on a real port: for blocking clients, and for failures."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.inference.registry import ModelRegistry
from service.inference.served_model import Model
from service.model.loading import load_bundle
from service.monitoring.metrics import Metrics
from service.settings import Settings
from tests.support.fake_engine import FakeEngine
from tests.support.tiny_bundle import write_tiny_bundle

_PATIENCE_S = 60.0


@dataclass
class Served:
    """A running service.

    Attributes:
        url: its address.
        engine: its fake engine.
        registry: registry of its one model.
        model: this model.
    """

    url: str
    engine: FakeEngine
    registry: ModelRegistry
    model: Model


@contextmanager
def service_thread(folder: Path, *, registry: type[ModelRegistry] = ModelRegistry, **settings: Any) -> Iterator[Served]:
    """Serve a tiny bundle in `folder` until the end of the block."""
    bundle = write_tiny_bundle(folder / "bundle")
    chosen = Settings(model=bundle, **settings)
    engine = FakeEngine()
    models = registry.of([(load_bundle(bundle), engine)], chosen, Metrics())
    model = models.get()
    app = create_app(chosen, models=models)
    ready = threading.Event()
    app.state.services.lifecycle.when_ready(lambda _: ready.set())
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="on", ws="none", access_log=False)
    )
    thread = threading.Thread(target=_serve, args=(server,), name="service-under-test")
    thread.start()
    try:
        assert ready.wait(_PATIENCE_S)
        port = _port(server, app)
        yield Served(f"http://127.0.0.1:{port}", engine, models, model)
    finally:
        engine.gate.set()
        server.should_exit = True
        thread.join(_PATIENCE_S)
        assert not thread.is_alive()


def _serve(server: uvicorn.Server) -> None:
    # `run` would install signal handlers and an event loop of its own.
    with asyncio.Runner() as runner:
        runner.run(server._serve())


def _port(server: uvicorn.Server, app: FastAPI) -> int:
    waiting = threading.Event()
    for _ in range(int(_PATIENCE_S * 100)):
        if server.started:
            port: int = server.servers[0].sockets[0].getsockname()[1]
            return port
        waiting.wait(0.01)
    raise AssertionError(f"{app.title} does not listen")
