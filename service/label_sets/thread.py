"""One thread for the work on label sets: several would compete with the event loop for the interpreter's lock."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

T = TypeVar("T")

_THREAD: Final = ThreadPoolExecutor(1, thread_name_prefix="anyclass-label-sets")


async def in_thread(work: Callable[[], T]) -> T:
    """Return `work()`, which may take a second: a set has up to 100,000 labels. One at a time, in their order."""
    return await asyncio.get_running_loop().run_in_executor(_THREAD, work)
