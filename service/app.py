"""The application: what it is made of, how it starts and how it ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from service.api.access.api_keys import ApiKeys
from service.api.documentation.docs_page import add_docs
from service.api.documentation.document import describe, operation_id
from service.api.huggingface import routes as huggingface
from service.api.huggingface.schemas import ZeroShotRequest
from service.api.middleware.access_control import AccessControl, open_access
from service.api.middleware.request_context import RequestContext
from service.api.native import classify, classify_batch, label_sets, operations
from service.api.native.label_set_schemas import LabelSetIn
from service.api.open_inference import routes as open_inference
from service.api.open_inference.schemas import InferRequest
from service.api.openai import batches, embeddings, files
from service.api.openai.batch_lines import RouteLineHandler
from service.api.openai.embeddings import EmbeddingsRequest
from service.api.openai.schemas import BatchRequest
from service.api.problems.handlers import add_handlers
from service.api.problems.schemas import OpenAIError, PlainError, Problem
from service.api.request.memory_budget import MemoryBudget
from service.api.services import Services
from service.classification.classifier import Classifier
from service.classification.embedder import Embedder
from service.classification.pipeline import Pipeline
from service.inference.registry import ModelRegistry
from service.installation import VERSION
from service.jobs.runner import JobRunner
from service.jobs.use_cases import Jobs
from service.jobs.work import InputLimits, JobWork
from service.label_sets.use_cases import LabelSets
from service.labels.cache import TextCache, open_text_cache
from service.monitoring.metrics import NO_STATE, Metrics
from service.settings import Settings
from service.state.factory import open_state
from service.state.protocol import StateStore

_SCHEMAS_NAMED_BY_ROUTES: Final[tuple[type[BaseModel], ...]] = (
    Problem,
    OpenAIError,
    PlainError,
    LabelSetIn,
    BatchRequest,
    EmbeddingsRequest,
    ZeroShotRequest,
    InferRequest,
)
_log = structlog.stdlib.get_logger("service.app")

DESCRIPTION: Final = """\
Send a picture and the labels it may have; get back how well each label fits.

Every error of the service's own interface is an RFC 9457 problem (`application/problem+json`) whose `type` never
changes; the protocols of OpenAI, Hugging Face and Open Inference have errors of their own form.
Every answer has an `X-Request-ID`; send your own to find it in the log.
"""


def create_app(
    settings: Settings,
    *,
    models: ModelRegistry | None = None,
    text_cache: TextCache | None = None,
    state: StateStore | None = None,
    metrics: Metrics | None = None,
) -> FastAPI:
    """Put the application together. Nothing is opened before its lifespan begins.

    `models`, `text_cache` and `state` take the place of what the settings name; the application closes them at its end.
    `metrics` are new ones where None.
    `app.state.services` holds the parts, of which the lifecycle tells when the service is ready or will never be.
    """
    services = Services(settings=settings, metrics=metrics or Metrics(), api_keys=ApiKeys.of(settings))
    services.metrics.build_info.labels(VERSION).set(1)
    services.lifecycle.when_ready(lambda _: services.metrics.ready.set(1))
    services.lifecycle.when_stopped(lambda: services.metrics.ready.set(0))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as undo:
            starting = asyncio.create_task(_start(services, undo, models, text_cache, state))
            try:
                # The port opens now, so that probes have an answer while the model is loaded.
                yield
            finally:
                services.lifecycle.stop()
                await _given_up(starting)

    app = FastAPI(
        title="anyclass",
        summary="Classify any image against any labels.",
        description=DESCRIPTION,
        version=VERSION,
        lifespan=lifespan,
        openapi_url=None,  # see `describe`
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=operation_id,
        default_response_class=JSONResponse,
    )
    app.state.services = services
    app.include_router(classify.router)
    app.include_router(classify_batch.router)
    app.include_router(operations.router)
    app.include_router(label_sets.router)
    app.include_router(files.router)
    app.include_router(batches.router)
    for protocol in (embeddings, huggingface, open_inference):
        app.include_router(protocol.router)
    add_docs(app)
    add_handlers(app)
    describe(app, _SCHEMAS_NAMED_BY_ROUTES)
    app.add_middleware(AccessControl, services=services)
    # Never less than one body, or that one would never get in.
    memory_budget = MemoryBudget(max(settings.max_total_body_bytes, settings.max_body_bytes), services.metrics)
    app.add_middleware(
        RequestContext,
        metrics=services.metrics,
        lifecycle=services.lifecycle,
        memory_budget=memory_budget,
        stall_timeout_s=settings.request_timeout_s,
    )
    return app


async def _start(
    services: Services,
    undo: AsyncExitStack,
    models: ModelRegistry | None,
    text_cache: TextCache | None,
    state: StateStore | None,
) -> None:
    """Load, warm, and be ready; or say why not. What is opened here is closed in reverse by `undo`."""
    try:
        await asyncio.to_thread(services.metrics.watch_process)
        await open_access(services, undo)
        cache = text_cache or open_text_cache(services.settings, services.metrics)
        undo.push_async_callback(cache.close)
        await cache.check()
        store = state or open_state(services.settings)
        undo.push_async_callback(store.close)
        if not await store.check():
            services.metrics.state_up.set(NO_STATE)
        registry = models
        if registry is None:
            registry = await asyncio.to_thread(ModelRegistry.load, services.settings, services.metrics)
        undo.push_async_callback(registry.close)
        await asyncio.to_thread(registry.warm)
        pipeline = Pipeline(registry, cache, services.settings, services.metrics)
        label_sets = LabelSets(store, registry, pipeline.label_vectors, services.settings, services.metrics)
        classifier = Classifier(pipeline, services.settings, services.metrics, label_sets)
        undo.push_async_callback(classifier.close)
        label_sets.start()
    except Exception as exc:  # noqa: BLE001 - whatever it is, the lifecycle's listeners end the process with it
        services.lifecycle.failed(exc)
        return
    services.registry = registry
    services.ready_classifier = classifier
    services.ready_embedder = Embedder(pipeline, services.settings)
    services.ready_jobs, runner = open_jobs(services, store)
    undo.push_async_callback(runner.close)
    # Before anybody is told of the end of the start: what a terminal then shows is not to be torn apart.
    for info in registry.describe():
        _log.info(
            "model loaded",
            model=info.name,
            revision=info.revision[:12],
            provider=info.provider,
            because=info.provider_reason,
            precision=info.precision,
        )
    services.lifecycle.loaded()
    runner.start()


async def _given_up(starting: asyncio.Task[None]) -> None:
    """Wait for the start to be over; one that is still going on does not go on."""
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)


def open_jobs(services: Services, state: StateStore) -> tuple[Jobs, JobRunner]:
    """Return the use cases of jobs, and a runner to start later."""
    settings = services.settings
    jobs = Jobs(
        state,
        max_file_bytes=settings.max_file_bytes,
        max_total_file_bytes=settings.max_total_file_bytes,
        max_active=settings.max_active_jobs,
    )
    limits = InputLimits(max_lines=settings.max_job_lines, max_line_bytes=settings.max_body_bytes)
    runner = JobRunner(
        jobs.job_store,
        jobs.file_store,
        JobWork(jobs.job_store, jobs.file_store, RouteLineHandler(services), limits),
        services.metrics,
        workers=settings.job_workers,
        lease_s=settings.job_lease_s,
        keep_s=settings.keep_files_s,
        stopping=lambda: services.lifecycle.stopping,
    )
    jobs.on_change = runner.wake
    return jobs, runner
