"""Work that is done only as long as somebody waits for it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

T = TypeVar("T")


async def unless_client_goes(
    request: Request, work: Coroutine[Any, Any, T], gone: Callable[[], Coroutine[Any, Any, None]] | None = None
) -> T:
    """Do `work`, or drop it and raise `ClientDisconnect` as soon as nobody waits for it any more.

    `gone` waits for that; it is needed where the request's body is still being read by somebody else.
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
