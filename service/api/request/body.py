"""Reading a request body without trusting what it says about itself."""

import asyncio
import io
import math
from collections.abc import AsyncIterator
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.api.problems.table import BodyTimeout
from service.api.request.memory_budget import HeldBody
from service.errors import MalformedRequest, PayloadTooLarge

_MIB: Final = 2**20


def check_declared_length(content_length: str | None, limit: int) -> int:
    """Refuse by the Content-Length header alone, before a byte is read; what it promises is not believed.

    Returns the length, 0 where there is none.
    """
    if content_length is None:
        return 0
    if not (content_length.isascii() and content_length.isdigit()):
        raise MalformedRequest("Content-Length is not a number.")
    if (declared := int(content_length[:20])) > limit:
        raise too_large(limit)
    return declared


def too_large(limit: int) -> PayloadTooLarge:
    """The refusal of a body of more than `limit` bytes."""
    shown = f"{limit / _MIB:g} MiB" if limit >= _MIB else f"{limit} bytes"
    return PayloadTooLarge(f"The request body is larger than {shown}, the limit of this server.")


async def chunks(
    receive: Receive, *, limit: int, timeout_s: float, bytes_per_s: float = math.inf
) -> AsyncIterator[bytes]:
    """The body as it arrives, `limit` bytes at most.

    Raises `PayloadTooLarge` at the first byte too many, `BodyTimeout` when the whole takes longer than
    `timeout_s` and the time that its bytes take at `bytes_per_s`, and `ClientDisconnect`.
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
            raise too_large(limit)
        if chunk:
            yield chunk


async def read(body: AsyncIterator[bytes]) -> bytes:
    """The whole body."""
    # Hands out what it has collected, where a bytearray would be copied.
    whole = io.BytesIO()
    async for chunk in body:
        whole.write(chunk)
    return whole.getvalue()


async def counted(body: AsyncIterator[bytes], held: HeldBody) -> AsyncIterator[bytes]:
    """The body as it arrives, as long as there is room for it. Raises `BodiesFull`."""
    async for chunk in body:
        held.add(len(chunk))
        yield chunk
