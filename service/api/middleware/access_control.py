"""Checks API keys and rate limits before a byte of the body is read."""

import asyncio
import ipaddress
import math
from contextlib import AsyncExitStack
from typing import Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.access.rate_limit import Limiter, Verdict, open_limiter
from service.api.problems.protocol_forms import render_error
from service.api.problems.table import headers_in, kind_of, problem_of
from service.api.services import Services
from service.errors import AnyclassError, NotReady, RateLimited, Unauthorized
from service.images.fetching import ImageFetcher

_OPEN_METHODS: Final = ("GET", "HEAD")
_POLICY: Final = "default"
_IPV6_SITE_BITS: Final = 64
"""A client with one IPv6 address owns the whole /64 network."""

_log = structlog.stdlib.get_logger("service.api")

HOW: Final = "Send it as `Authorization: Bearer KEY` or as `X-API-Key: KEY`."


class AccessControl:
    """Pure ASGI middleware inside `RequestContext`; sets ``scope["state"]["api_key"]`` to the key's name.

    GET and HEAD of a path in the setting `open_paths` need no key and count towards no limit.
    """

    def __init__(self, app: ASGIApp, *, services: Services) -> None:
        self.app = app
        self._services = services
        paths = services.settings.open_paths
        self._open = frozenset(path for path in paths if not path.endswith("*"))
        self._open_prefixes = tuple(path[:-1] for path in paths if path.endswith("*"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's scope."""
        if scope["type"] != "http" or self._is_open(scope):
            await self.app(scope, receive, send)
            return
        limiter = self._services.limiter
        headers: dict[str, str] = {}
        try:
            client = self._client(scope)
            if limiter is not None:
                verdict = await limiter.ask(client)
                headers = rate_headers(limiter, verdict)
                if not verdict.allowed:
                    self._services.metrics.access_refused.labels("rate").inc()
                    raise RateLimited(
                        "You exceed the rate limit of this server; try again later.", verdict.retry_after_s
                    )
        except AnyclassError as exc:
            scope["state"]["problem"] = kind_of(exc).slug
            body = problem_of(exc, scope["state"]["request_id"])
            answer = render_error(scope["path"], body, {**headers_in(exc, Headers(scope=scope)), **headers})
            await answer(scope, receive, send)
            return

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        await self.app(scope, receive, send_with_limits if headers else send)

    def _is_open(self, scope: Scope) -> bool:
        path = scope["path"]
        return scope["method"] in _OPEN_METHODS and (path in self._open or path.startswith(self._open_prefixes))

    def _client(self, scope: Scope) -> str:
        """Return the client for the rate limit: the key's name, or the address if no key is required."""
        keys = self._services.api_keys
        if not keys.required:
            return f"address:{client_address(scope)}"
        if not keys.loaded:
            raise NotReady("The service cannot answer yet: it is starting.")
        given = presented_key(Headers(scope=scope))
        name = None if given is None else keys.name_of(given)
        if name is None:
            self._services.metrics.access_refused.labels("key").inc()
            if given is None:
                raise Unauthorized(f"This server needs an API key. {HOW}")
            raise Unauthorized("This API key is unknown to this server; check it.", presented=True)
        scope["state"]["api_key"] = name
        structlog.contextvars.bind_contextvars(api_key=name)
        return f"key:{name}"


async def open_access(services: Services, undo: AsyncExitStack) -> None:
    """Read the keys and open the limiter and the image fetcher, as far as the settings name them; `undo` closes them.

    Raises `ConfigurationError` for unusable keys.
    """
    settings, keys = services.settings, services.api_keys
    await asyncio.to_thread(keys.load)
    if keys.required:
        following = asyncio.create_task(keys.follow())
        undo.callback(following.cancel)
    else:
        _log.info("no API key is set: every request is answered")
    services.limiter = open_limiter(settings, services.metrics)
    if services.limiter is not None:
        undo.push_async_callback(services.limiter.close)
    if settings.allow_image_urls:
        fetcher = await asyncio.to_thread(
            ImageFetcher,
            services.metrics,
            max_bytes=settings.max_body_bytes,
            timeout_s=settings.image_url_timeout_s,
            per_host=settings.image_url_per_host,
        )
        undo.push_async_callback(fetcher.close)
        services.image_fetcher = fetcher


def presented_key(headers: Headers) -> str | None:
    """Return the key of a request, or None; a bearer token takes precedence over `X-API-Key`."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key", "").strip() or None


def client_address(scope: Scope) -> str:
    """Return the client's IPv4 address, or the /64 network of its IPv6 address."""
    host = (scope.get("client") or ("unknown", 0))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), _IPV6_SITE_BITS), strict=False))


def rate_headers(limiter: Limiter, verdict: Verdict) -> dict[str, str]:
    """Return the limit and its rest, as draft-ietf-httpapi-ratelimit-headers has them."""
    limit = limiter.limit
    return {
        "ratelimit-policy": f'"{_POLICY}";q={limit.burst};w={max(1, math.ceil(limit.window_s))}',
        "ratelimit": f'"{_POLICY}";r={verdict.remaining};t={math.ceil(verdict.full_s)}',
    }
