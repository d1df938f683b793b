import asyncio

from service.cli.remote.backoff import AdaptiveLimit
from service.cli.remote.client import retry_after_s


async def test_no_more_at_once_than_allowed() -> None:
    """Later requests wait; the one with the lowest position is next."""
    limit = AdaptiveLimit(2, retry_for_s=60)
    await limit.acquire(0)
    await limit.acquire(1)
    order: list[int] = []

    async def later(position: int) -> None:
        await limit.acquire(position)
        order.append(position)
        limit.record_answer()

    waiting = [asyncio.create_task(later(position)) for position in (5, 3, 4)]
    await asyncio.sleep(0)
    assert [] == order
    limit.record_answer()
    await asyncio.gather(*waiting)
    assert [3, 4, 5] == order


async def test_a_refusal_halves_and_answers_bring_it_back() -> None:
    """Refusals of requests that were in flight together count once; each full round of answers adds one."""
    limit = AdaptiveLimit(8, retry_for_s=60)
    for position in range(8):
        await limit.acquire(position)
    assert [True] * 8 == [limit.record_refusal(0.01) for _ in range(8)]
    assert 4 == limit.limit
    for position in range(5):
        await limit.acquire(position)
        limit.record_answer()
    assert 5 == limit.limit
    for position in range(40):
        await limit.acquire(position)
        limit.record_answer()
    assert 8 == limit.limit


async def test_nothing_goes_before_the_time_the_service_asked_for() -> None:
    """Requests that were not refused themselves wait too."""
    limit = AdaptiveLimit(4, retry_for_s=60)
    loop = asyncio.get_running_loop()
    await limit.acquire(0)
    asked = loop.time()
    assert limit.record_refusal(0.2)
    await limit.acquire(1)
    assert loop.time() - asked >= 0.2


async def test_retries_end() -> None:
    """A wait longer than the remaining retry time does not start; an answer renews the time."""
    limit = AdaptiveLimit(1, retry_for_s=0.5)
    await limit.acquire(0)
    assert not limit.record_refusal(3600)
    await limit.acquire(0)
    limit.record_answer()
    await limit.acquire(0)
    assert limit.record_refusal(0.01)


async def test_waits_grow_without_retry_after() -> None:
    """The second wait exceeds the retry time, the first does not."""
    limit = AdaptiveLimit(1, retry_for_s=0.9)
    await limit.acquire(0)
    assert limit.record_refusal(None)
    await limit.acquire(0)
    assert not limit.record_refusal(None)


async def test_a_cancelled_request_is_skipped() -> None:
    """It does not hold up the others."""
    limit = AdaptiveLimit(1, retry_for_s=60)
    await limit.acquire(0)
    gone = asyncio.create_task(limit.acquire(1))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    limit.record_answer()
    await limit.acquire(2)
    limit.release()
    # Cancelled at the moment of its admission.
    await limit.acquire(3)
    unlucky = asyncio.create_task(limit.acquire(4))
    await asyncio.sleep(0)
    limit.record_answer()
    unlucky.cancel()
    await asyncio.gather(unlucky, return_exceptions=True)
    await limit.acquire(5)


def test_retry_after() -> None:
    """Seconds or a date; anything else is ignored."""
    assert 7.0 == retry_after_s({"retry-after": "7"})
    assert 0.0 == retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"})
    assert (retry_after_s({"retry-after": "Fri, 31 Dec 2199 23:59:59 GMT"}) or 0) > 1e9
    assert [None, None, None] == [
        retry_after_s(headers) for headers in ({}, {"retry-after": "soon"}, {"retry-after": "-1"})
    ]
