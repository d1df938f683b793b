import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from service.concurrency import in_order, run_off_loop, turn


async def test_many_items_leave_the_event_loop_alone() -> None:
    """Few are done where they are, for a thread costs more than they do."""
    here = threading.get_ident()
    assert here == await run_off_loop(10, threading.get_ident)
    assert here != await run_off_loop(100_000, threading.get_ident)
    assert asyncio.get_running_loop().is_running()


async def test_a_cancelled_task_gives_its_turn_to_the_next() -> None:
    """Nor does it keep the others waiting for ever; the turns are in order."""
    order: list[int] = []

    async def wait(number: int) -> None:
        for _ in range(2):
            await turn()
            order.append(number)

    tasks = [asyncio.create_task(wait(number)) for number in range(4)]
    await asyncio.sleep(0)
    for index in (0, 2):
        tasks[index].cancel()
    async with asyncio.timeout(60):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert [1, 3, 1, 3] == order


async def test_results_are_in_order_and_few_are_begun() -> None:
    """Whichever is ready first; memory does not grow with the number of items."""
    begun: list[int] = []
    given: list[int] = []

    async def work(index: int, item: int) -> int:
        begun.append(index)
        assert len(begun) - len(given) <= 3
        await asyncio.sleep(0.001 * (item % 3))
        return item * 10

    async for result in in_order(range(20), work, 3):
        given.append(result)  # noqa: PERF401 - `work` looks at it meanwhile
    assert [item * 10 for item in range(20)] == given


async def test_an_error_drops_the_rest() -> None:
    """What is begun is cancelled, and nothing more is."""
    cancelled: list[int] = []
    last_has_begun = asyncio.Event()

    async def work(index: int, item: int) -> int:
        if index == 1:
            await last_has_begun.wait()
            raise ValueError(item)
        if index == 3:
            last_has_begun.set()
        try:
            await asyncio.sleep(3600 if index else 0)
        except asyncio.CancelledError:
            cancelled.append(index)
            raise
        return item

    got: list[int] = []
    try:
        async for result in in_order(range(100), work, 3):
            got.append(result)  # noqa: PERF401 - what came before the error counts
    except ValueError:
        got.append(-1)
    assert ([0, -1], [2, 3]) == (got, cancelled)


async def test_the_next_item_is_awaited_while_others_are_in_work() -> None:
    """A slow source holds up no result; what it raises comes after the results of the items before."""
    first_done = asyncio.Event()

    async def items() -> AsyncIterator[int]:
        yield 1
        await first_done.wait()
        yield 2
        raise ValueError("source")

    async def work(index: int, item: int) -> int:
        return item * 10 + index

    got: list[int] = []

    async def collect() -> None:
        async for result in in_order(items(), work, 5):
            got.append(result)
            first_done.set()

    with pytest.raises(ValueError, match="source"):
        await collect()
    assert [10, 21] == got


async def test_closing_early_stops_the_source_and_the_work() -> None:
    """Nothing goes on behind a consumer that has left."""
    ended: list[str] = []

    async def items() -> AsyncIterator[int]:
        try:
            yield 0
            yield 1
            await asyncio.sleep(3600)
        finally:
            ended.append("source")

    async def work(index: int, item: int) -> int:
        try:
            await asyncio.sleep(3600 * item)
        except asyncio.CancelledError:
            ended.append("work")
            raise
        return item

    async with aclosing(in_order(items(), work, 5)) as results:
        async for _ in results:
            await asyncio.sleep(0)
            break
    assert {"source", "work"} == set(ended)
