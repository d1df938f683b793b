"""Stops work whose client has disconnected."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


async def cancel_on_disconnect(
    request: Request, work: Coroutine[Any, Any, T], disconnected: Callable[[], Coroutine[Any, Any, None]] | None = None
) -> T:
    """Return the result of `work`; cancel it and raise `ClientDisconnect` as soon as the client disconnects.

    Args:
        disconnected: waits for the disconnect; required while another task still reads the request's body.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_wait_disconnected(request) if disconnected is None else disconnected())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


class StoppableStream(StreamingResponse):
    """A stream that ends with `ClientDisconnect` as soon as the client disconnects.

    That of Starlette ends without an error, and leaves its last pieces in a cycle of frames to the garbage collector.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything. Raises `ClientDisconnect`."""
        await cancel_on_disconnect(Request(scope, receive), self.stream_response(send))


async def _wait_disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
