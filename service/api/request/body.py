"""Reads a request's body without trusting the headers that describe it."""

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from service.api.problems.table import BodyTimeout, UnsupportedMediaType, quoted
from service.api.request.memory_budget import BufferedBody
from service.api.request.pieces import Pieces, joined
from service.concurrency import turn
from service.errors import MalformedRequest, PayloadTooLarge
from service.settings import Settings

JSON: Final = "application/json"
MULTIPART: Final = "multipart/form-data"
OCTETS: Final = "application/octet-stream"

_MIB: Final = 2**20


def media_type(request: Request) -> str:
    """Return the body's media type in lower case, without parameters.

    Raises `UnsupportedMediaType` for a body with a Content-Encoding.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(
            "This server reads no compressed bodies: send the body as it is, without a Content-Encoding."
        )
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def require_media_type(request: Request, wanted: str) -> None:
    """Raise `UnsupportedMediaType` if the body's media type is not `wanted`."""
    if (kind := media_type(request)) != wanted:
        raise UnsupportedMediaType(f"This route does not read {content_type_shown(kind)}; send {wanted}.")


def content_type_shown(kind: str) -> str:
    """Return the media type `kind` as error messages name it; `kind` may be empty."""
    return f"the Content-Type {quoted(kind, 100)}" if kind else "a body without a Content-Type"


def body_chunks(request: Request, settings: Settings) -> AsyncIterator[bytes]:
    """Check the declared length of a body that goes to memory; return its chunks as they arrive.

    Raises `MalformedRequest`, `PayloadTooLarge` and `BodiesFull`. Iterating raises `BodiesFull`, and as
    `receive_chunks`.
    """
    limit = settings.max_body_bytes
    buffered: BufferedBody = request.state.buffered_body
    buffered.check_fits(check_declared_length(request.headers.get("content-length"), limit))
    return _counted(receive_chunks(request.receive, limit=limit, timeout_s=settings.request_timeout_s), buffered)


async def read_body(request: Request, settings: Settings) -> bytes:
    """Read a whole body into memory. Raises as `body_chunks`."""
    return await join_chunks(body_chunks(request, settings))


async def join_chunks(chunks: AsyncIterator[bytes]) -> bytes:
    """Read all chunks and join them."""
    pieces = Pieces()
    async for chunk in chunks:
        pieces.add(chunk)
        if pieces.long:
            # The next chunk is read only when it is asked for: so one long body is read in each round of the loop.
            await turn()
    return await joined(pieces.take())


def check_declared_length(content_length: str | None, limit: int) -> int:
    """Refuse a body by its Content-Length, before a byte is read. The header is not trusted beyond that.

    Returns the declared length, 0 without the header. Raises `MalformedRequest` and `PayloadTooLarge`.
    """
    if content_length is None:
        return 0
    if not (content_length.isascii() and content_length.isdigit()):
        raise MalformedRequest("Content-Length is not a number.")
    if (declared := int(content_length[:20])) > limit:
        raise _too_large(limit)
    return declared


async def receive_chunks(
    receive: Receive, *, limit: int, timeout_s: float, bytes_per_s: float = math.inf
) -> AsyncIterator[bytes]:
    """Yield a body as it arrives, at most `limit` bytes.

    Args:
        timeout_s: time for the whole body, in seconds.
        bytes_per_s: extends `timeout_s` by the time that the bytes received take at this rate.

    Raises: `PayloadTooLarge` at the first byte too many, `BodyTimeout`, and `ClientDisconnect`.
    """
    count = 0
    deadline = asyncio.get_running_loop().time() + timeout_s
    more = True
    while more:
        try:
            async with asyncio.timeout_at(deadline + count / bytes_per_s):
                message = await receive()
        except TimeoutError as exc:
            raise BodyTimeout(f"The request body did not arrive within {timeout_s + count / bytes_per_s:g} s.") from exc
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        count += len(chunk)
        if count > limit:
            raise _too_large(limit)
        if chunk:
            yield chunk


async def _counted(chunks: AsyncIterator[bytes], buffered: BufferedBody) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        buffered.add(len(chunk))
        yield chunk


def _too_large(limit: int) -> PayloadTooLarge:
    shown = f"{limit / _MIB:g} MiB" if limit >= _MIB else f"{limit} bytes"
    return PayloadTooLarge(f"The request body is larger than {shown}, the limit of this server.")
