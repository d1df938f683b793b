"""Refuses long query strings and drops cookies: the framework would parse both on the event loop."""

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.problems.protocol_forms import render_error
from service.api.problems.table import kind_of, problem_of
from service.errors import MalformedRequest

MAX_QUERY_BYTES: Final = 4_096
_COOKIE: Final = b"cookie"
_WITH_LABELS: Final = frozenset({"/v1/classify", "/v1/classify/batch"})
"""Routes with the fields in the query, when the picture is the body. They limit the number of fields."""


class ParsingLimits:
    """Pure ASGI middleware, inside of `AccessControl`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's scope."""
        if scope["type"] == "http":
            # No route reads cookies.
            scope["headers"] = [header for header in scope["headers"] if header[0] != _COOKIE]
        if scope["type"] != "http" or len(scope["query_string"]) <= MAX_QUERY_BYTES or scope["path"] in _WITH_LABELS:
            await self.app(scope, receive, send)
            return
        error = MalformedRequest(
            f"The query string has more than {MAX_QUERY_BYTES} bytes. Send fields in the body, if the route has one."
        )
        scope["state"]["problem"] = kind_of(error).slug
        await render_error(scope["path"], problem_of(error, scope["state"]["request_id"]))(scope, receive, send)
