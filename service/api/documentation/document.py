"""The OpenAPI document: FastAPI's description of the routes, completed with what all routes share.

It is built on the first request for it, and kept.
"""

import asyncio
import json
import re
import threading
from collections.abc import Collection, Iterator
from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api.documentation.examples import ANSWERS
from service.api.documentation.request_bodies import without_null
from service.api.documentation.responses import HEADERS, REFERENCE, header
from service.api.problems.schemas import OpenAIError, PlainError, Problem
from service.api.services import Services

PATH: Final = "/openapi.json"

TAGS: Final = (
    {"name": "Classify", "description": "Images against any labels."},
    {"name": "Label sets", "description": "Named lists of labels: written once, computed once, used by name."},
    {"name": "Models", "description": "The served models and their prompt templates."},
    {"name": "Batch jobs", "description": "Files of requests, answered in the background, in OpenAI's form."},
    {"name": "OpenAI", "description": "For the clients of OpenAI's API."},
    {"name": "Hugging Face", "description": "For `huggingface_hub` and `@huggingface/inference`."},
    {"name": "Open Inference Protocol", "description": "For clients of KServe and Triton: version 2 of the protocol."},
    {"name": "Probes", "description": "For load balancers and monitoring."},
)

_NEVER_ANSWERED: Final = ("HTTPValidationError", "ValidationError")
"""FastAPI's own errors for a parameter; here such an error has the form of all others."""
_DEFAULT_DESCRIPTION: Final = "Successful Response"
"""FastAPI's description of a response that a route does not describe."""
_ERRORS: Final = (Problem, OpenAIError, PlainError)
_METHODS: Final = ("get", "put", "post", "delete")
_LIMITED: Final = re.compile("2..|429")
_SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, if the server requires one."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key in its own header."},
}


def operation_id(route: APIRoute) -> str:
    """Return the name by which generated clients call a route."""
    return route.name


def describe(app: FastAPI, request_models: Collection[type[BaseModel]]) -> None:
    """Give `app` a complete OpenAPI document and a route to it.

    Args:
        request_models: models to which routes refer by name (see `json_body`), and which FastAPI therefore misses.
    """
    app.openapi_tags = [dict(tag) for tag in TAGS]
    building = threading.Lock()
    of_routes = app.openapi

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = of_routes()
            _complete(schema, (*_ERRORS, *request_models), app.state.services)
            app.openapi_schema = schema
        return app.openapi_schema

    def as_bytes() -> bytes:
        with building:
            return json.dumps(document(), ensure_ascii=False, separators=(",", ":")).encode()

    async def answer(_: Request) -> Response:
        # Building takes a tenth of a second, so it runs in a thread.
        return Response(await asyncio.to_thread(as_bytes), media_type="application/json")

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way
    app.router.routes.append(Route(PATH, answer, include_in_schema=False))


def operations_of(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the path, the method in lower case and the description of every operation."""
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield path, method, item[method]


def _complete(document: dict[str, Any], models: Collection[type[BaseModel]], services: Services) -> None:
    schemas = document["components"]["schemas"]
    _, ours = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE + "{model}")
    schemas.update(ours["$defs"])
    for name in _NEVER_ANSWERED:
        schemas.pop(name, None)
    # Not in the models themselves: FastAPI drops every null from an example.
    for name, example in ANSWERS.items():
        schemas[name]["examples"] = [example]
    document["components"]["headers"] = dict(HEADERS)
    for _, _, operation in operations_of(document):
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = without_null(parameter["schema"])
        if _NEVER_ANSWERED[0] in str(operation["responses"].get("422")):
            del operation["responses"]["422"]
        for status, response in operation["responses"].items():
            _complete_response(status, response, schemas)
    if services.api_keys.required:
        _require_key(document, services.settings.open_paths)


def _complete_response(status: str, response: dict[str, Any], schemas: dict[str, Any]) -> None:
    if response["description"] == _DEFAULT_DESCRIPTION:
        response["description"] = _description(response, schemas)
    headers = response.setdefault("headers", {})
    headers |= header("X-Request-ID", always=True)
    if _LIMITED.fullmatch(status):
        headers |= header("RateLimit") | header("RateLimit-Policy")


def _require_key(document: dict[str, Any], open_paths: Collection[str]) -> None:
    """Require an API key for every operation except GET on an open path."""
    document["components"]["securitySchemes"] = dict(_SECURITY)
    document["security"] = [{name: []} for name in _SECURITY]
    for path, method, operation in operations_of(document):
        if method == "get" and path in open_paths:
            operation["security"] = []


def _description(response: dict[str, Any], schemas: dict[str, Any]) -> str:
    """Return the description of the answer's schema."""
    references = [content["schema"].get("$ref", "") for content in response.get("content", {}).values()]
    found = [schemas[reference.removeprefix(REFERENCE)]["description"] for reference in references if reference]
    return str(found[0]) if found else _DEFAULT_DESCRIPTION
