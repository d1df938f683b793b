"""Run the whole application on the tiny bundle in the event loop of a test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from starlette.routing import Route

from service.app import create_app
from service.settings import Settings
from tests.support.classifying import until
from tests.support.tiny_bundle import write_tiny_bundle

FAILING = "/failing"
"""POST to it raises an exception that nothing expects."""


@asynccontextmanager
async def application(folder: Path, **settings: Any) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    """Yield a client of a ready application, and the application."""

    async def fail(_: object) -> None:
        raise RuntimeError("a mistake")

    def build() -> FastAPI:
        bundle = write_tiny_bundle(folder / "bundle")
        app = create_app(Settings(model=bundle, provider="cpu", decode_threads=1, **settings))
        app.router.routes.append(Route(FAILING, fail, methods=["POST"]))
        return app

    app = await asyncio.to_thread(build)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        await until(lambda: app.state.services.lifecycle.ready)
        yield client, app
