"""Turns exceptions of routes and of the framework into problems."""

from http import HTTPStatus
from typing import Final

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from service.api.problems import table
from service.api.problems.protocol_forms import render_error
from service.api.route_table import RouteTable
from service.errors import AnyclassError
from service.validation_messages import faults

_SERVER_ERROR: Final = 500
_READING: Final = ("GET", "HEAD")
_METHODS: Final = (*_READING, "DELETE", "PATCH", "POST", "PUT")

_log = structlog.stdlib.get_logger("service.api")


def add_handlers(app: FastAPI) -> None:
    """Answer every error of `app` with a problem, in the form of the protocol at its path."""
    app.add_exception_handler(AnyclassError, _service_error)
    app.add_exception_handler(HTTPException, _framework_error)
    app.add_exception_handler(RequestValidationError, _validation_error)


def log_failure(error: AnyclassError) -> None:
    """Log `error` with its cause if the service is at fault, not the client."""
    kind = table.kind_of(error)
    if kind.status == _SERVER_ERROR:
        _log.error("request failed", problem=kind.slug, exc_info=error)


async def _service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, AnyclassError)  # noqa: S101 - registered for this class
    log_failure(error)
    request.state.problem = table.kind_of(error).slug
    body = table.problem_of(error, request.state.request_id)
    return render_error(request.url.path, body, table.headers_in(error, request.headers))


async def _framework_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class
    status = error.status_code
    kind = table.ROUTING_KINDS.get(status) or table.Kind("http-error", HTTPStatus(status).phrase, status)
    path = table.quoted(request.url.path)
    headers = dict(error.headers or {})
    match kind:
        case table.NOT_FOUND:
            detail = _not_found(request)
        case table.METHOD_NOT_ALLOWED:
            headers = {"allow": _allowed(request)}
            detail = f"{path} does not allow {table.quoted(request.method, 20)}; it allows {headers['allow']}."
        case _:
            detail = str(error.detail)
    request.state.problem = kind.slug
    body = table.problem(kind, detail, request.state.request_id)
    return render_error(request.url.path, body, headers)


def _not_found(request: Request) -> str:
    path = request.scope["path"]
    shortened = "/" + "/".join(filter(None, path.split("/")))
    detail = f"No route matches {table.quoted(path)}"
    routes: RouteTable = request.app.state.services.routes
    if shortened != path and routes.template(request.method, shortened) is not None:
        return f"{detail}; leave out the slash that is too many: {table.quoted(shortened)}."
    return f"{detail}; GET /docs shows all routes."


def _allowed(request: Request) -> str:
    """Return the methods of every route at the path (RFC 9110, section 10.2.1); the framework knows only the first."""
    # A mounted application has moved the root to itself.
    scope = {**request.scope, "root_path": request.scope.get("app_root_path", request.scope.get("root_path", ""))}
    methods = {
        method
        for method in _METHODS
        for route in request.app.routes
        if route.matches({**scope, "method": method})[0] is Match.FULL
        # Mounted files match every method.
        and (not isinstance(route, Mount) or method in _READING)
    }
    return ", ".join(sorted(methods))


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class
    # A path begins with the place of the parameter: "query.limit".
    fields = [(name.partition(".")[2], fault) for name, fault in faults(error.errors())]
    return await _service_error(request, table.FieldErrors(fields))
