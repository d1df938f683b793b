"""The OpenAPI document: what FastAPI makes of the routes, and what holds for all of them.

It is made when it is first asked for, and kept.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel

from service.api.answers import HEADERS, REFERENCE, header, shared_examples
from service.api.embeddings import EmbeddingsRequest
from service.api.huggingface_schemas import ZeroShotRequest
from service.api.job_schemas import BatchRequest
from service.api.label_set_schemas import LabelSetIn
from service.api.open_inference_schemas import InferRequest
from service.api.protocol_schemas import OpenAIError, PlainError
from service.api.schemas import Problem
from service.api.services import Services

TAGS: Final = (
    {"name": "classify", "description": "Pictures against any labels."},
    {"name": "label sets", "description": "Labels with a name: written once, computed once, used by name."},
    {"name": "models", "description": "What is served, and what can be asked of it."},
    {"name": "batches", "description": "Files of requests, answered in the background, as OpenAI's clients send them."},
    {"name": "openai", "description": "For the clients of OpenAI's API."},
    {"name": "hugging face", "description": "For `huggingface_hub` and `@huggingface/inference`."},
    {"name": "open inference", "description": "For clients of KServe and Triton: the Open Inference Protocol (v2)."},
    {"name": "probes", "description": "For load balancers and monitoring."},
)

_NAMED_BY_HAND: Final[tuple[type[BaseModel], ...]] = (
    Problem,
    OpenAIError,
    PlainError,
    LabelSetIn,
    BatchRequest,
    EmbeddingsRequest,
    ZeroShotRequest,
    InferRequest,
)
"""Schemas to which routes refer by name, so that FastAPI does not know of them."""
_NEVER_ANSWERED: Final = ("HTTPValidationError", "ValidationError")
"""What FastAPI would answer where it checks a parameter; here that is an error like any other."""
_METHODS: Final = ("get", "put", "post", "delete")
_LIMITED: Final = re.compile("2..|429")
_SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, where the server needs one."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same in a header of its own."},
}


def operation_id(route: APIRoute) -> str:
    """The name by which generated clients call a route."""
    return route.name


def describe(app: FastAPI) -> None:
    """Give `app` an OpenAPI document that is complete."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                description=app.description,
                tags=[dict(tag) for tag in TAGS],
                routes=app.routes,
            )
            _complete(schema, app.state.services)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way


def _complete(document: dict[str, Any], services: Services) -> None:
    components = document["components"]
    for model in _NAMED_BY_HAND:
        part = model.model_json_schema(ref_template=REFERENCE + "{model}")
        components["schemas"].update(part.pop("$defs", {}))
        components["schemas"][model.__name__] = part
    for name in _NEVER_ANSWERED:
        components["schemas"].pop(name, None)
    components["headers"] = dict(HEADERS)
    components["examples"] = shared_examples()
    components["securitySchemes"] = dict(_SECURITY)
    keys: list[dict[str, list[str]]] = [{name: []} for name in _SECURITY]
    document["security"] = keys if services.api_keys.required else [{}, *keys]
    open_paths = services.settings.open_paths
    for path, method, operation in operations_of(document):
        if services.api_keys.required and method == "get" and path in open_paths:
            operation["security"] = []
        responses = operation["responses"]
        if _NEVER_ANSWERED[0] in str(responses.get("422")):
            del responses["422"]
        for status, response in responses.items():
            headers = response.setdefault("headers", {})
            headers |= header("X-Request-ID", always=True)
            if _LIMITED.fullmatch(status):
                headers |= header("RateLimit") | header("RateLimit-Policy")


def operations_of(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method in lower case, and description of every operation."""
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield path, method, item[method]
