"""Stops work whose client has disconnected."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

T = TypeVar("T")


async def unless_client_goes(
    request: Request, work: Coroutine[Any, Any, T], gone: Callable[[], Coroutine[Any, Any, None]] | None = None
) -> T:
    """Return the result of `work`; cancel it and raise `ClientDisconnect` as soon as the client disconnects.

    Args:
        gone: waits for the disconnect; required while another task still reads the request's body.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_client_gone(request) if gone is None else gone())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _client_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
