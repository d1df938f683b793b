"""Puts the service together: state, models, use cases and routes, with their start and their end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import structlog
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from service.api import huggingface, native, open_inference, openai
from service.api.access.api_keys import ApiKeys
from service.api.documentation.docs_page import add_docs
from service.api.documentation.document import describe, operation_id
from service.api.documentation.responses import HEADERS
from service.api.head_routes import head_routes
from service.api.middleware.access_control import AccessControl, open_access
from service.api.middleware.cross_origin import cross_origin
from service.api.middleware.key_usage import KeyUsage
from service.api.middleware.parsing_limits import ParsingLimits
from service.api.middleware.request_context import RequestContext
from service.api.openai.batch_lines import RouteLineHandler
from service.api.page.routes import add_page
from service.api.problems.handlers import add_handlers
from service.api.request.memory_budget import MemoryBudget
from service.api.route_table import RouteTable
from service.api.services import Services
from service.classification.classifier import Classifier
from service.classification.embedder import Embedder
from service.classification.pipeline import Pipeline
from service.concurrency import cancel
from service.inference.registry import ModelRegistry
from service.installation import VERSION
from service.jobs.runner import JobRunner
from service.jobs.use_cases import Jobs
from service.jobs.work import InputLimits, JobWork
from service.label_sets.use_cases import LabelSets
from service.monitoring.metrics import NO_STATE, Metrics
from service.settings import Settings
from service.state.factory import open_state
from service.state.protocol import StateStore
from service.state.write_probe import PROBE_S, WriteProbe
from service.vector_cache.caches import VectorCache
from service.vector_cache.opening import Caches, open_caches

_PROTOCOLS: Final = (native, openai, huggingface, open_inference)

_log = structlog.stdlib.get_logger("service.app")

DESCRIPTION: Final = """\
Send an image and the labels to choose from; the answer says how well each label fits.

Every error of the service's own interface is an RFC 9457 problem (`application/problem+json`) whose `type` never
changes; the protocols of OpenAI, Hugging Face and Open Inference have their own forms of errors.
Every answer has an `X-Request-ID`; send your own to find the request in the log.
"""


def create_app(
    settings: Settings,
    *,
    models: ModelRegistry | None = None,
    text_cache: VectorCache | None = None,
    state: StateStore | None = None,
    metrics: Metrics | None = None,
) -> FastAPI:
    """Return the application; it opens nothing before its lifespan begins.

    `app.state.services` holds its parts. Their `lifecycle` reports readiness, and a start that failed.
    `app.state.memory_budget` counts the bytes of its requests and answers.
    `models`, `text_cache` and `state` take the place of those that the settings name; `models` are closed with the
    application.
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
                # The port opens here: probes need an answer while the model is being loaded.
                yield
            finally:
                services.lifecycle.stop()
                await cancel([starting])

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
    routers = [router for protocol in _PROTOCOLS for router in protocol.ROUTERS]
    for router in routers:
        app.include_router(router)
    for router in routers:
        app.include_router(head_routes(router))
    if settings.page:
        add_page(app)
    add_docs(app, at_root=not settings.page)
    add_handlers(app)
    describe(app, [model for protocol in _PROTOCOLS for model in protocol.REQUEST_MODELS])
    services.routes = RouteTable([*(route for router in routers for route in router.routes), *app.routes])
    app.add_middleware(ParsingLimits)
    app.add_middleware(AccessControl, services=services)
    cors = cross_origin(settings.cors_origins, list(HEADERS)) if settings.cors_origins else None
    if cors is not None:
        app.add_middleware(cors)
    # At least one body, or a body of the maximum size could never be admitted.
    memory_budget = MemoryBudget(max(settings.max_total_body_bytes, settings.max_body_bytes), services.metrics)
    app.state.memory_budget = memory_budget
    app.add_middleware(
        RequestContext,
        metrics=services.metrics,
        lifecycle=services.lifecycle,
        routes=services.routes,
        memory_budget=memory_budget,
        around_errors=cors,
        key_usage=KeyUsage(services.metrics) if services.api_keys.required else None,
        full_log=settings.access_log == "full",
    )
    return app


async def _start(
    services: Services,
    undo: AsyncExitStack,
    models: ModelRegistry | None,
    text_cache: VectorCache | None,
    state: StateStore | None,
) -> None:
    """Open, load and warm every part, then report ready or failed. `undo` closes the parts in reverse order."""
    try:
        await asyncio.to_thread(services.metrics.watch_process)
        await open_access(services, undo)
        caches = Caches(text_cache) if text_cache else open_caches(services.settings, services.metrics)
        undo.push_async_callback(caches.texts.close)
        await caches.texts.check()
        store = state or open_state(services.settings)
        undo.push_async_callback(store.close)
        if not await store.check():
            services.metrics.state_up.set(NO_STATE)
        registry = models
        if registry is None:
            registry = await asyncio.to_thread(ModelRegistry.load, services.settings, services.metrics)
        undo.push_async_callback(registry.close)
        await asyncio.to_thread(registry.warm)
        pipeline = Pipeline(registry, caches.texts, services.settings, services.metrics, images=caches.images)
        label_sets = LabelSets(store, registry, pipeline.label_vectors, services.settings, services.metrics)
        classifier = Classifier(pipeline, services.settings, services.metrics, label_sets)
        undo.push_async_callback(classifier.close)
        label_sets.start()
    except Exception as exc:  # noqa: BLE001 - the lifecycle's listeners end the process, whatever the error
        services.lifecycle.failed(exc)
        return
    services.registry = registry
    services.ready_classifier = classifier
    services.ready_embedder = Embedder(pipeline, services.settings)
    services.ready_jobs, runner = _open_jobs(services, store)
    undo.push_async_callback(runner.close)
    # Logged before startup is announced, so that log lines do not interleave with the banner.
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


def _open_jobs(services: Services, state: StateStore) -> tuple[Jobs, JobRunner]:
    """Return the use cases of jobs, and a runner to start later."""
    settings = services.settings
    jobs = Jobs(
        state,
        services.metrics,
        max_file_bytes=settings.max_file_bytes,
        max_total_file_bytes=settings.max_total_file_bytes,
        upload_timeout_s=settings.upload_timeout_s,
        max_active=settings.max_active_jobs,
    )
    limits = InputLimits(max_lines=settings.max_job_lines, max_line_bytes=settings.max_body_bytes)
    runner = JobRunner(
        jobs.job_store,
        jobs.file_store,
        JobWork(jobs.job_store, jobs.file_store, RouteLineHandler(services), limits),
        WriteProbe(state, every_s=PROBE_S),
        services.metrics,
        workers=settings.job_workers,
        lease_s=settings.job_lease_s,
        keep_s=settings.keep_files_s,
        stopping=lambda: services.lifecycle.stopping,
    )
    jobs.on_change = runner.wake
    return jobs, runner
