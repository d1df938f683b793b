"""Helpers for concurrent work: all or none, in order, off the event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, Final, Self, TypeVar
from weakref import WeakKeyDictionary

A = TypeVar("A")
B = TypeVar("B")
T = TypeVar("T")
R = TypeVar("R")

MANY: Final = 1_024
"""Number of items from which work runs in a thread."""


async def both(first: Coroutine[Any, Any, A], second: Coroutine[Any, Any, B]) -> tuple[A, B]:
    """Run two coroutines; see `together`."""
    one, two = await together([first, second])
    return one, two


async def together(coroutines: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Run coroutines and return their results in order.

    If one fails, cancel the others and wait for their end before raising. Unlike `asyncio.TaskGroup` this raises the
    first failure itself, not an exception group.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if pending:
            for task in done:
                task.result()
        return [task.result() for task in tasks]
    finally:
        await cancel(tasks)


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait for their end, whatever it is."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def pause(until: asyncio.Event, seconds: float) -> None:
    """Wait for an event, for so many seconds at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await until.wait()


class _Turns:
    """Wakes the tasks that wait for a turn, one in each round of an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._call_soon = loop.call_soon
        self._waiting: deque[asyncio.Future[None]] = deque()

    def add(self, future: asyncio.Future[None]) -> None:
        """Wake `future` after all that were added before."""
        self._waiting.append(future)
        if len(self._waiting) == 1:
            self._call_soon(self._wake)

    def _wake(self) -> None:
        while self._waiting and self._waiting[0].done():  # cancelled
            self._waiting.popleft()
        if self._waiting:
            self._waiting.popleft().set_result(None)
        if self._waiting:
            self._call_soon(self._wake)


_TURNS: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns]] = WeakKeyDictionary()


async def turn() -> None:
    """Let the event loop do other work, and wait for a turn: of all callers one goes on in each round of the loop.

    With `asyncio.sleep(0)` a round would have a step of each caller, and other work would wait for all of them.
    """
    loop = asyncio.get_running_loop()
    if (turns := _TURNS.get(loop)) is None:
        turns = _TURNS[loop] = _Turns(loop)
    future = loop.create_future()
    turns.add(future)
    await future


async def run_off_loop(items: int, work: Callable[[], A], executor: Executor | None = None, *, many: int = MANY) -> A:
    """Run `work` on `items` items: at once if they are few, in a thread if they would block the event loop.

    `work` must be Python code, or C code that releases the GIL: otherwise one long call blocks every thread.

    Args:
        items: number of items, or of bytes; fewer than `many` run at once.
        executor: the event loop's default executor if None.
        many: number of items from which `work` runs in a thread.
    """
    if items < many:
        return work()
    return await asyncio.get_running_loop().run_in_executor(executor, work)


class Wanted:
    """Tells work in a thread whether its outcome is still wanted: a thread cannot be cancelled, but may look.

    Use as a context manager around the wait for the work.
    """

    def __init__(self) -> None:
        self._over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True

    def check(self) -> None:
        """Raise `CancelledError` once the block has ended."""
        if self._over:
            raise asyncio.CancelledError


async def in_order(
    items: Iterable[T] | AsyncIterable[T], work: Callable[[int, T], Awaitable[R]], limit: int
) -> AsyncGenerator[R]:
    """Yield `work(index, item)` for each item, in the items' order.

    At most `limit` items are started and not yet yielded. The next item is awaited while earlier ones are processed.
    Close the generator (`contextlib.aclosing`) to stop early: started work is then cancelled and awaited.

    Raises: the exception of `work` for an item, at its turn; an exception of `items`, after all results before it.
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
        await cancel([starter, *tasks])
