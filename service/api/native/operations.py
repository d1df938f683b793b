"""Models, templates, health and metrics."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from service.api.documentation.examples import METRICS
from service.api.documentation.request_bodies import MODEL_PARAMETER, ModelName
from service.api.documentation.responses import error_responses
from service.api.native.schemas import ModelsAnswer, OpenAIModel, Status, TemplatesAnswer, model_json
from service.api.problems.table import FieldErrors
from service.api.request.query import read_query
from service.api.services import services_of
from service.errors import NotReady, UnknownModel

_RENDERING: Final = ThreadPoolExecutor(1, thread_name_prefix="anyclass-metrics")
"""Renders the metrics: in the default executor they would wait behind large answers that are written there."""

router = APIRouter()


@router.get(
    "/v1/models",
    tags=["Models"],
    response_model=ModelsAnswer,
    summary="The models that really run",
    responses=error_responses("/v1/models", NotReady),
)
async def models(request: Request) -> Response:
    """Provider, precision and parity are those of the running process, not of its configuration."""
    described = services_of(request).models.describe()
    return JSONResponse(
        {
            "models": [model_json(info) for info in described],
            "object": "list",
            "data": [OpenAIModel(id=info.name).model_dump() for info in described],
        }
    )


@router.get(
    "/v1/models/{model:path}",
    tags=["OpenAI"],
    response_model=OpenAIModel,
    summary="One model",
    responses=error_responses("/v1/models/{model:path}", NotReady, UnknownModel),
)
async def one_model(request: Request, model: ModelName) -> Response:
    """Accepts a name or an alias; the answer has the name."""
    return JSONResponse(OpenAIModel(id=services_of(request).models.get(model).name).model_dump())


@router.get(
    "/v1/templates",
    tags=["Models"],
    response_model=TemplatesAnswer,
    summary="The prompt templates of a model",
    openapi_extra=MODEL_PARAMETER,
    responses=error_responses("/v1/templates", NotReady, UnknownModel, FieldErrors),
)
async def templates(request: Request) -> Response:
    """The name of each set can be sent as `templates`."""
    model = services_of(request).models.get(read_query(request, "model").get("model"))
    sets = {name: list(each) for name, each in model.bundle.templates.items()}
    return JSONResponse({"model": model.name, "templates": sets})


@router.get(
    "/livez",
    tags=["Probes"],
    response_model=Status,
    summary="Whether the process is alive",
    responses=error_responses("/livez", NotReady),
)
async def livez(request: Request) -> Response:
    """Fails only if a restart is required. Answers without a model too."""
    services_of(request).require_alive()
    return JSONResponse({"status": "alive"})


@router.get(
    "/readyz",
    tags=["Probes"],
    response_model=Status,
    summary="Whether to send requests here",
    responses=error_responses("/readyz", NotReady),
)
async def readyz(request: Request) -> Response:
    """Fails until the models are warm, and as soon as the service is asked to stop."""
    services_of(request).lifecycle.require_ready()
    return JSONResponse({"status": "ready"})


@router.get(
    "/metrics",
    tags=["Probes"],
    response_class=Response,
    summary="Metrics in the Prometheus text format",
    responses={
        200: {
            "description": "All metrics.",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": METRICS}},
        },
        **error_responses("/metrics"),
    },
)
async def metrics(request: Request) -> Response:
    """Requests, latencies, queues and caches."""
    # In a thread, because the metrics of the process are read from files.
    text = await asyncio.get_running_loop().run_in_executor(_RENDERING, services_of(request).metrics.render)
    return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})
