"""Gives every request its id, its log line and its metrics, and answers exceptions that nothing else caught."""

import re
import time
import uuid
from collections.abc import Callable
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.lifecycle import Lifecycle
from service.api.middleware.key_usage import KeyUsage
from service.api.problems.protocol_forms import render_error
from service.api.problems.table import INTERNAL, INTERNAL_DETAIL, problem
from service.api.protocols import protocol_of
from service.api.request.memory_budget import BufferedBody, MemoryBudget
from service.api.route_table import RouteTable
from service.monitoring.metrics import Metrics
from service.monitoring.usage import Usage, current

HEADER: Final = "x-request-id"
CLIENT_GONE: Final = 499
"""The status, in logs and metrics, of a request whose client left before the answer (nginx's number)."""
GONE_SLUG: Final = "client-gone"
"""The problem's name, in the metrics, of such a request."""

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNMATCHED: Final = "unmatched"
_NOSNIFF: Final = (b"x-content-type-options", b"nosniff")
_QUIET_ROUTES: Final = frozenset({"/livez", "/readyz", "/metrics"})
_MAX_PATH_LOGGED: Final = 200

_log = structlog.stdlib.get_logger("service.access")


class RequestContext:
    """Pure ASGI middleware.

    `scope["state"]` carries ``request_id``, ``started`` (`time.perf_counter`, seconds) and ``buffered_body``
    (`BufferedBody`).
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        lifecycle: Lifecycle,
        routes: RouteTable,
        memory_budget: MemoryBudget,
        around_errors: Callable[[ASGIApp], ASGIApp] | None = None,
        key_usage: KeyUsage | None = None,
        full_log: bool = False,
    ) -> None:
        """Take the parts that a request needs.

        `around_errors` is a middleware for the answers to exceptions that nothing else caught. With `key_usage` the
        work of each request counts for its API key; with `full_log` its line in the log has it too.
        """
        self.app = app
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._routes = routes
        self._memory_budget = memory_budget
        self._around_errors = around_errors or (lambda answer: answer)
        self._key_usage = key_usage
        self._full_log = full_log
        self._counts_work = full_log or key_usage is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's scope."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope).get(HEADER))
        started = time.perf_counter()
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["started"] = started
        buffered = state["buffered_body"] = BufferedBody(self._memory_budget)
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[HEADER] = request_id
                headers.raw.append(_NOSNIFF)
                if self._lifecycle.stopping:
                    # Makes clients with a kept-alive connection send the next request elsewhere.
                    headers["connection"] = "close"
            await send(message)

        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        if self._counts_work:
            state["usage"] = usage = Usage()
            current.set(usage)
        self._metrics.http_in_flight.inc()
        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = CLIENT_GONE
        except Exception:
            _log.exception("unexpected error")
            if status is not None:
                # Part of the answer is sent. Raising cuts the connection, which shows the client that it is incomplete.
                raise
            body = problem(INTERNAL, INTERNAL_DETAIL, request_id)
            state["problem"] = INTERNAL.slug
            await self._around_errors(render_error(scope["path"], body))(scope, receive, send_with_id)
        finally:
            buffered.release()
            self._metrics.http_in_flight.dec()
            self._record(scope, status or CLIENT_GONE, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        protocol = protocol_of(method, scope["path"])
        # Routing leaves no route in the scope of a request that was refused before it, nor of a page of Starlette's.
        matched = getattr(scope.get("route"), "path", None) or self._routes.template(method, scope["path"])
        route = matched or _UNMATCHED
        self._metrics.http_requests.labels(protocol, route, method, f"{status // 100}xx").inc()
        self._metrics.http_seconds.labels(protocol, route).observe(seconds)
        log = _log.debug if route in _QUIET_ROUTES and status != INTERNAL.status else _log.info
        problem_slug = scope["state"].get("problem")
        if problem_slug or status == CLIENT_GONE:
            self._metrics.http_problems.labels(protocol, problem_slug or GONE_SLUG).inc()
        usage: Usage | None = scope["state"].get("usage")
        key: str | None = scope["state"].get("api_key")
        if self._key_usage is not None and key is not None and usage is not None:
            self._key_usage.count(key, f"{status // 100}xx", usage)
        # Without the query string, which holds labels.
        log(
            "request",
            method=method,
            path=scope["path"][:_MAX_PATH_LOGGED],
            status=status,
            duration_ms=round(seconds * 1000, 2),
            **({"problem": problem_slug} if problem_slug else {}),
            **(_details(scope, usage) if self._full_log and usage is not None else {}),
        )


def _details(scope: Scope, usage: Usage) -> dict[str, object]:
    """Return the fields that the full access log adds to a request's line; none has content of the request."""
    client = scope.get("client")
    details: dict[str, object] = {} if client is None else {"client": client[0]}
    if usage.model is not None:
        details["model"] = usage.model
    if usage.images or usage.labels:
        details |= {"images": usage.images, "labels": usage.labels}
    if usage.stages_s:
        details["stages_ms"] = {stage: round(seconds * 1000, 2) for stage, seconds in usage.stages_s.items()}
    return details


def request_id_of(given: str | None) -> str:
    """Return the client's id if it is valid (up to 128 of ``A-Z a-z 0-9 . _ : / + = @ -``), else a new one."""
    if given is not None and _SANE_ID.fullmatch(given):
        return given
    return uuid.uuid4().hex
