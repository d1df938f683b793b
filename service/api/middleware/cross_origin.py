"""Lets web pages of chosen origins call the service (CORS, https://fetch.spec.whatwg.org/#http-cors-protocol)."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

_METHODS: Final = ("DELETE", "GET", "HEAD", "POST", "PUT")


def cross_origin(origins: Collection[str], exposed: Collection[str]) -> Callable[[ASGIApp], ASGIApp]:
    """Return the middleware that answers preflight requests, and allows pages of `origins` to read answers.

    It belongs outside of access control: a browser sends no key with a preflight. Pages may send any header, since the
    client libraries of other protocols add their own, but no cookies: a key is a header.

    Args:
        origins: scheme, host and port of each, or ``*`` for all.
        exposed: names of the headers of an answer that pages may read.
    """
    return partial(
        CORSMiddleware, allow_origins=origins, allow_methods=_METHODS, allow_headers=["*"], expose_headers=exposed
    )
