"""The OpenAPI document: what FastAPI makes of the routes, and what holds for all of them.

It is made when it is first asked for, and kept.
"""

import asyncio
import json
import re
import threading
from collections.abc import Collection, Iterator
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api.documentation.responses import HEADERS, REFERENCE, header, shared_examples
from service.api.services import Services

PATH: Final = "/openapi.json"

TAGS: Final = (
    {"name": "Classify", "description": "Pictures against any labels."},
    {"name": "Label sets", "description": "Labels with a name: written once, computed once, used by name."},
    {"name": "Models", "description": "What is served, and what can be asked of it."},
    {
        "name": "Batch jobs",
        "description": "Files of requests, answered in the background, in OpenAI's form.",
    },
    {"name": "OpenAI", "description": "For the clients of OpenAI's API."},
    {"name": "Hugging Face", "description": "For `huggingface_hub` and `@huggingface/inference`."},
    {"name": "Open Inference Protocol", "description": "For clients of KServe and Triton: version 2 of the protocol."},
    {"name": "Probes", "description": "For load balancers and monitoring."},
)

_NEVER_ANSWERED: Final = ("HTTPValidationError", "ValidationError")
"""What FastAPI would answer where it checks a parameter; here that is an error like any other."""
_NOTHING_SAID: Final = "Successful Response"
"""FastAPI's description of an answer of which a route says nothing."""
_METHODS: Final = ("get", "put", "post", "delete")
_LIMITED: Final = re.compile("2..|429")
_SECURITY: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, where the server needs one."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same in a header of its own."},
}


def operation_id(route: APIRoute) -> str:
    """The name by which generated clients call a route."""
    return route.name


def describe(app: FastAPI, schemas: Collection[type[BaseModel]]) -> None:
    """Give `app` a complete OpenAPI document and a route to it.

    Args:
        schemas: models to which routes refer by name, so that FastAPI does not know of them.
    """
    making = threading.Lock()

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
            _complete(schema, schemas, app.state.services)
            app.openapi_schema = schema
        return app.openapi_schema

    def written() -> bytes:
        with making:
            return json.dumps(document(), ensure_ascii=False, separators=(",", ":")).encode()

    async def answered(_: Request) -> Response:
        # In a thread: it takes a tenth of a second, for which no other request should have to wait.
        return Response(await asyncio.to_thread(written), media_type="application/json")

    app.openapi = document  # type: ignore[method-assign]  # FastAPI's documented way
    app.router.routes.append(Route(PATH, answered, include_in_schema=False))


def _complete(document: dict[str, Any], models: Collection[type[BaseModel]], services: Services) -> None:
    schemas = document["components"]["schemas"]
    for model in models:
        part = model.model_json_schema(ref_template=REFERENCE + "{model}")
        schemas.update(part.pop("$defs", {}))
        schemas[model.__name__] = part
    for name in _NEVER_ANSWERED:
        schemas.pop(name, None)
    document["components"] |= {"headers": dict(HEADERS), "examples": shared_examples()}
    for _, _, operation in operations_of(document):
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = _without_null(parameter["schema"])
        if _NEVER_ANSWERED[0] in str(operation["responses"].get("422")):
            del operation["responses"]["422"]
        for status, response in operation["responses"].items():
            _complete_response(status, response, schemas)
    if services.api_keys.required:
        _lock(document, services.settings.open_paths)


def _complete_response(status: str, response: dict[str, Any], schemas: dict[str, Any]) -> None:
    if response["description"] == _NOTHING_SAID:
        response["description"] = _description(response, schemas)
    headers = response.setdefault("headers", {})
    headers |= header("X-Request-ID", always=True)
    if _LIMITED.fullmatch(status):
        headers |= header("RateLimit") | header("RateLimit-Policy")


def _lock(document: dict[str, Any], open_paths: Collection[str]) -> None:
    """Say that a key is needed, where it is."""
    document["components"]["securitySchemes"] = dict(_SECURITY)
    document["security"] = [{name: []} for name in _SECURITY]
    for path, method, operation in operations_of(document):
        if method == "get" and path in open_paths:
            operation["security"] = []


def _description(response: dict[str, Any], schemas: dict[str, Any]) -> str:
    """What the schema of the answer says of itself."""
    references = [content["schema"].get("$ref", "") for content in response.get("content", {}).values()]
    found = [schemas[reference.removeprefix(REFERENCE)]["description"] for reference in references if reference]
    return str(found[0]) if found else _NOTHING_SAID


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter, which can be left out but never be null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**kinds[0], **{name: value for name, value in schema.items() if name != "anyOf"}}


def operations_of(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Path, method in lower case, and description of every operation."""
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield path, method, item[method]
