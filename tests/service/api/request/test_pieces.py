import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import pytest

from service.api.request.body import join_chunks
from service.api.request.pieces import PIECE_BYTES, Pieces, joined


@pytest.mark.parametrize("chunk", [1_000, 256_000, 2 * PIECE_BYTES])
async def test_chunks_are_joined_in_their_order(chunk: int) -> None:
    """No piece grows beyond its size and one chunk: a single buffer would be copied again and again as it grows."""
    body = bytes(range(256)) * (3 * PIECE_BYTES // 256) + b"end"
    pieces = Pieces()
    for at in range(0, len(body), chunk):
        pieces.add(memoryview(body)[at : at + chunk])
    taken = pieces.take()
    assert max(map(len, taken)) <= PIECE_BYTES + chunk
    assert body == await joined(taken)
    assert ([], [b""]) == (taken, pieces.take())


async def test_of_long_bodies_one_is_read_in_a_round_of_the_loop() -> None:
    """Each chunk takes half a millisecond; other requests do not wait for one of each client."""
    clock = [0]
    rounds: list[list[int]] = [[] for _ in range(4)]

    async def count_rounds() -> None:
        while True:
            await asyncio.sleep(0)
            clock[0] += 1

    async def chunks(asked: list[int]) -> AsyncIterator[bytes]:
        for _ in range(10):
            yield bytes(PIECE_BYTES)
            asked.append(clock[0])

    counting = asyncio.create_task(count_rounds())
    bodies = await asyncio.gather(*[join_chunks(chunks(asked)) for asked in rounds])
    counting.cancel()
    assert [10 * PIECE_BYTES] * 4 == list(map(len, bodies))
    asked = [number for each in rounds for number in each]
    assert sorted(asked) == sorted(set(asked))


def test_many_short_chunks_take_no_more_memory_than_their_bytes() -> None:
    """A list of 100,000 single bytes would take 8 MB with its objects."""
    chunks = [bytes([number % 256]) * 2 for number in range(100_000)]
    tracemalloc.start()
    try:
        pieces = Pieces()
        for chunk in chunks:
            pieces.add(chunk)
        assert tracemalloc.get_traced_memory()[0] < 2 * sum(map(len, chunks))
    finally:
        tracemalloc.stop()
