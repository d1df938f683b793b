"""Several coroutines at once, where the first failure ends them all."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

A = TypeVar("A")
B = TypeVar("B")

_MANY: Final = 1_024


async def both(first: Coroutine[Any, Any, A], second: Coroutine[Any, Any, B]) -> tuple[A, B]:
    """Run two coroutines; where one fails the other is cancelled, and has ended before the failure is raised."""
    one, two = await together([first, second])
    return one, two


async def together(coroutines: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Run coroutines and return their results in order.

    Unlike `asyncio.TaskGroup` this raises the first failure itself, not a group of them.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if pending:
            for task in done:
                task.result()
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def aside(items: int, work: Callable[[], A]) -> A:
    """Do `work` on so many items: at once where they are few, in a thread where the event loop would stand still.

    It must be written in Python for that: what C code does in one piece holds up every thread.
    """
    return work() if items < _MANY else await asyncio.to_thread(work)
