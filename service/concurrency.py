"""Coroutines side by side: all or none, in order, off the event loop."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any, Final, TypeVar

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")
R = TypeVar("R")

MANY: Final = 1_024
"""Items from which on work belongs in a thread."""


async def both(first: Coroutine[Any, Any, A], second: Coroutine[Any, Any, B]) -> tuple[A, B]:
    """Run two coroutines; if one fails, cancel the other and wait for its end before raising the failure."""
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


async def run_off_loop(items: int, work: Callable[[], A], executor: Executor | None = None) -> A:
    """Run `work` on `items` items: at once if they are few, in a thread if they would block the event loop.

    `work` must be Python code: a single long call into C blocks every thread, this one too.

    Args:
        items: number of items; fewer than `MANY` run at once.
        work: takes no arguments.
        executor: where to run; the event loop's default executor if None.
    """
    if items < MANY:
        return work()
    return await asyncio.get_running_loop().run_in_executor(executor, work)


async def in_order(
    items: Iterable[T] | AsyncIterable[T], work: Callable[[int, T], Awaitable[R]], limit: int
) -> AsyncGenerator[R]:
    """Yield `work(index, item)` for each item, in the items' order.

    At most `limit` items are started and not yet yielded. The next item is awaited while earlier ones are in work.
    Close the generator (`contextlib.aclosing`) to stop early: work under way is cancelled and awaited.

    Raises: what `work` raises for an item, at its turn; what the items raise, after the results of those before.
    """
    results: asyncio.Queue[asyncio.Future[R] | None] = asyncio.Queue()
    free = asyncio.Semaphore(limit)
    tasks: dict[asyncio.Future[R], None] = {}  # in their order

    async def start(index: int, item: T) -> None:
        await free.acquire()
        task = asyncio.ensure_future(work(index, item))
        tasks[task] = None
        results.put_nowait(task)

    async def start_all() -> None:
        index = 0
        try:
            if isinstance(items, AsyncIterable):
                async for item in items:
                    await start(index, item)
                    index += 1
            else:
                for index, item in enumerate(items):
                    await start(index, item)
        finally:
            results.put_nowait(None)

    starter = asyncio.create_task(start_all())
    try:
        while (task := await results.get()) is not None:
            result = await task
            del tasks[task]
            free.release()
            yield result
        await starter
    finally:
        starter.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(starter, *tasks, return_exceptions=True)
