"""Runs the parsing of request bodies in threads of its own, so that the event loop is free for other requests.

The threads are not those of the default executor: a body does not wait behind answers that are written there.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from service.api.request.strict_json import is_cheap
from service.errors import AnyclassError

T = TypeVar("T")

_SHORT_CHARS: Final = 2**16
_LARGE_BYTES: Final = 2**20
_LARGE: Final = ThreadPoolExecutor(1, thread_name_prefix="anyclass-parse-large")
"""One thread, because parsed JSON takes many times the memory of its bytes."""
_SMALL: Final = ThreadPoolExecutor(1, thread_name_prefix="anyclass-parse")


async def parsed(body: bytes | str, parse: Callable[[], T]) -> T:
    """Return `parse()` of JSON: called at once if that is cheap, otherwise in a thread."""
    return parse() if is_cheap(body) else await off_loop(len(body), parse)


async def decoded(chars: int, decode: Callable[[], T]) -> T:
    """Return `decode()` of images of `chars` characters of base64: called at once if that is cheap."""
    return decode() if chars < _SHORT_CHARS else await off_loop(chars, decode)


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """Run `work` on `size` bytes in a thread: large ones one at a time, small ones beside them."""
    executor = _LARGE if size >= _LARGE_BYTES else _SMALL
    return await asyncio.get_running_loop().run_in_executor(executor, _without_frames, work)


def _without_frames(work: Callable[[], T]) -> T:
    """Call `work`. Its errors go on alone: a traceback would keep millions of values for the event loop to free."""
    try:
        return work()
    except AnyclassError as exc:
        exc.__cause__ = exc.__context__ = None
        raise exc.with_traceback(None)  # noqa: B904 - see above
