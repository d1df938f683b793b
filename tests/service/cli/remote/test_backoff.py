import asyncio

from service.cli.remote.backoff import Turns
from service.cli.remote.client import retry_after_s


async def test_no_more_at_once_than_allowed() -> None:
    """Whoever comes later waits, and the lowest place is next."""
    turns = Turns(2, patience_s=60)
    await turns.take(0)
    await turns.take(1)
    order: list[int] = []

    async def later(place: int) -> None:
        await turns.take(place)
        order.append(place)
        turns.answered()

    waiting = [asyncio.create_task(later(place)) for place in (5, 3, 4)]
    await asyncio.sleep(0)
    assert [] == order
    turns.answered()
    await asyncio.gather(*waiting)
    assert [3, 4, 5] == order


async def test_a_refusal_halves_and_answers_bring_it_back() -> None:
    """Refusals of requests that were under way together count once; each full round of answers adds one."""
    turns = Turns(8, patience_s=60)
    for place in range(8):
        await turns.take(place)
    assert [True] * 8 == [turns.refused(0.01) for _ in range(8)]
    assert 4 == turns.allowed
    for place in range(5):
        await turns.take(place)
        turns.answered()
    assert 5 == turns.allowed
    for place in range(40):
        await turns.take(place)
        turns.answered()
    assert 8 == turns.allowed


async def test_nothing_goes_before_the_time_the_service_asked_for() -> None:
    """Not even a request that was not refused itself."""
    turns = Turns(4, patience_s=60)
    loop = asyncio.get_running_loop()
    await turns.take(0)
    asked = loop.time()
    assert turns.refused(0.2)
    await turns.take(1)
    assert loop.time() - asked >= 0.2


async def test_patience_ends() -> None:
    """A wait that is longer than what is left of the patience is not begun; an answer renews it."""
    turns = Turns(1, patience_s=0.5)
    await turns.take(0)
    assert not turns.refused(3600)
    await turns.take(0)
    turns.answered()
    await turns.take(0)
    assert turns.refused(0.01)


async def test_waits_grow_where_the_service_does_not_say() -> None:
    """The second wait would be longer than the patience, which the first was not."""
    turns = Turns(1, patience_s=0.9)
    await turns.take(0)
    assert turns.refused(None)
    await turns.take(0)
    assert not turns.refused(None)


async def test_whoever_gives_up_waiting_is_passed_over() -> None:
    """A cancelled request takes nobody's turn."""
    turns = Turns(1, patience_s=60)
    await turns.take(0)
    gone = asyncio.create_task(turns.take(1))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    turns.answered()
    await turns.take(2)
    turns.dropped()
    # Cancelled in the very moment in which it was given the turn.
    await turns.take(3)
    unlucky = asyncio.create_task(turns.take(4))
    await asyncio.sleep(0)
    turns.answered()
    unlucky.cancel()
    await asyncio.gather(unlucky, return_exceptions=True)
    await turns.take(5)


def test_retry_after() -> None:
    """Seconds, or the time of day; anything else says nothing."""
    assert 7.0 == retry_after_s({"retry-after": "7"})
    assert 0.0 == retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"})
    assert (retry_after_s({"retry-after": "Fri, 31 Dec 2199 23:59:59 GMT"}) or 0) > 1e9
    assert [None, None, None] == [
        retry_after_s(headers) for headers in ({}, {"retry-after": "soon"}, {"retry-after": "-1"})
    ]
