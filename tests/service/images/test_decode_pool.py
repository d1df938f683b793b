"""The decode pool: what it answers, what it bounds, and what it drops."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from service.errors import InvalidImage, NotReady, Overloaded, PayloadTooLarge, UnsupportedImageFormat
from service.images.decode_pool import DecodePool
from service.images.decoding import ImageLimits, decode
from service.lanes import Lane
from service.model.manifest import ImageSection
from tests.support.classifying import until
from tests.support.pictures import encode, noise

SECTION = ImageSection(
    height=32, width=32, resize="shortest", crop="center", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
)
SMALL = encode(noise(20, 20), "PNG")
LARGE = encode(Image.new("RGB", (1_000, 1_000), "red"), "JPEG")
LIMITS = ImageLimits(max_pixels=1_000_000)


def new_pool(**options: Any) -> DecodePool:
    """Two threads, pictures of a megapixel at most."""
    usual: dict[str, Any] = {"threads": 2, "limits": LIMITS, "most_waiting": 1_000}
    return DecodePool(**(usual | options))


@pytest.fixture
async def pool() -> AsyncIterator[DecodePool]:
    """The usual one, closed in the end."""
    pool = new_pool()
    yield pool
    pool.close()


class Gated(bytes):
    """An image at which a thread stops until the gate is open, and then says that it has begun."""

    gate: ClassVar = threading.Event()
    begun: ClassVar[dict[int, None]] = {}

    def __len__(self) -> int:
        """The first thing that is asked of an image."""
        self.begun.setdefault(id(self))
        self.gate.wait(30)
        return super().__len__()


@pytest.fixture
def gated() -> Iterator[type[Gated]]:
    """The gate is shut, and open in the end whatever happens."""
    Gated.gate.clear()
    Gated.begun.clear()
    yield Gated
    Gated.gate.set()


async def test_the_answer_is_that_of_a_plain_call(pool: DecodePool) -> None:
    """Small and large pictures, many at once, each its own."""
    pictures = [encode(noise(30, 20, seed), "PNG") for seed in range(12)] + [LARGE]
    expected = [decode(data, SECTION) for data in pictures]
    for want, got in zip(
        expected, await asyncio.gather(*(pool.decode(data, SECTION) for data in pictures)), strict=True
    ):
        np.testing.assert_array_equal(want, got)
    await until(lambda: pool.large_pixels == 0)
    assert 0 == pool.waiting


async def test_errors_are_those_of_a_plain_call(pool: DecodePool) -> None:
    """And they leave nothing behind."""
    broken = LARGE[: len(LARGE) // 2]
    for data, error in ((b"?", UnsupportedImageFormat), (b"", InvalidImage), (broken, InvalidImage)):
        with pytest.raises(error):
            await pool.decode(data, SECTION)
    small = new_pool(limits=ImageLimits(max_bytes=10))
    with pytest.raises(PayloadTooLarge):
        await small.decode(SMALL, SECTION)
    small.close()
    await until(lambda: pool.large_pixels == 0)
    assert 0 == pool.waiting


async def test_too_many_waiting_are_refused_at_once() -> None:
    """Those before them are answered."""
    pool = new_pool(most_waiting=3)
    tasks = [asyncio.create_task(pool.decode(SMALL, SECTION)) for _ in range(5)]
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [np.ndarray] * 3 + [Overloaded] * 2 == [type(answer) for answer in answers]
    assert (32, 32, 3) == (await pool.decode(SMALL, SECTION)).shape
    pool.close()


async def test_large_pictures_never_have_more_pixels_at_once_than_twice_the_limit() -> None:
    """Whatever the number of threads; every one of them has its turn."""
    pool = new_pool(threads=8)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, pool.large_pixels)
            await asyncio.sleep(0)

    watcher = asyncio.create_task(watch())
    answers = await asyncio.gather(*(pool.decode(LARGE, SECTION) for _ in range(24)))
    watcher.cancel()
    with suppress(asyncio.CancelledError):
        await watcher
    assert 24 == len(answers)
    assert 1_000_000 == most  # a second one would make it two million, and small pictures have a share
    await until(lambda: pool.large_pixels == 0)
    pool.close()


async def test_small_pictures_do_not_wait_for_large_ones() -> None:
    """Large ones wait for room without holding a thread."""
    pool = new_pool(threads=2)
    pool.large_pixels = 1_500_000  # as if others were being decoded
    waiting = asyncio.create_task(pool.decode(LARGE, SECTION))
    for _ in range(8):
        assert (32, 32, 3) == (await pool.decode(SMALL, SECTION)).shape
    assert not waiting.done()
    pool._release(1_500_000)
    assert (32, 32, 3) == (await waiting).shape
    pool.close()


async def test_a_large_picture_that_is_given_up_leaves_its_place() -> None:
    """While it waits for room, and while it is decoded."""
    pool = new_pool(threads=2)
    tasks = [asyncio.create_task(pool.decode(LARGE, SECTION)) for _ in range(6)]
    await until(lambda: pool.large_pixels > 0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: pool.large_pixels == 0)
    assert 0 == pool.waiting
    assert (32, 32, 3) == (await pool.decode(LARGE, SECTION)).shape
    pool.close()


async def test_what_nobody_waits_for_is_not_decoded(gated: type[Gated]) -> None:
    """Neither what waits on the event loop nor what lies ready for a thread."""
    pool = new_pool(threads=1)
    images = [gated(SMALL) for _ in range(20)]
    tasks = [asyncio.create_task(pool.decode(image, SECTION)) for image in images]
    await until(lambda: len(gated.begun) == 1)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    gated.gate.set()
    assert (32, 32, 3) == (await pool.decode(SMALL, SECTION)).shape
    assert 1 == len(gated.begun)
    pool.close()


@pytest.mark.parametrize(
    ("background", "interactive", "order"),
    [(4, 2, "bIIbbb"), (3, 7, "bIIIbIIIbI"), (0, 3, "III"), (3, 0, "bbb")],
    ids=["at once", "one turn in four", "alone", "only background"],
)
async def test_single_requests_wait_for_no_batch(
    gated: type[Gated], background: int, interactive: int, order: str
) -> None:
    """An interactive image comes before all background ones that no thread has begun; those have one turn in four."""
    pool = new_pool(threads=1, background_every=4)
    images: dict[int, str] = {}
    tasks = []
    # One starts before the others arrive; it is a background one if any waits.
    for lane, count in ((Lane.BACKGROUND, background), (Lane.INTERACTIVE, interactive)):
        for _ in range(count):
            image = gated(SMALL)
            images[id(image)] = "b" if lane is Lane.BACKGROUND else "I"
            tasks.append(asyncio.create_task(pool.decode(image, SECTION, lane=lane)))
            await until(lambda: len(gated.begun) == 1)
    await until(lambda: pool.waiting == len(tasks))
    gated.gate.set()
    await asyncio.gather(*tasks)
    assert order == "".join(images[image] for image in gated.begun)
    pool.close()


async def test_a_large_single_picture_stands_behind_no_line_of_large_ones() -> None:
    """Each lane has a line of its own for the room that large pictures share."""
    pool = new_pool(threads=2)
    pool.large_pixels = 1_500_000  # as if others were being decoded
    line = [asyncio.create_task(pool.decode(LARGE, SECTION, lane=Lane.BACKGROUND)) for _ in range(8)]
    single = asyncio.create_task(pool.decode(LARGE, SECTION))
    await until(lambda: all(lock.locked() for lock in pool._turn.values()))
    pool._release(1_500_000)
    await single
    assert 2 > sum(task.done() for task in line) - 1
    await asyncio.gather(*line)
    pool.close()


async def test_the_event_loop_runs_while_threads_decode(gated: type[Gated]) -> None:
    """However many images wait."""
    pool = new_pool(threads=1)
    tasks = [asyncio.create_task(pool.decode(gated(SMALL), SECTION)) for _ in range(20)]
    await until(lambda: len(gated.begun) == 1)
    assert 20 == pool.waiting
    gated.gate.set()
    assert 20 == len(await asyncio.gather(*tasks))
    pool.close()


async def test_a_closed_pool_says_so(gated: type[Gated]) -> None:
    """Also to those who waited; what a thread had begun is answered."""
    pool = new_pool(threads=1)
    tasks = [asyncio.create_task(pool.decode(gated(SMALL), SECTION)) for _ in range(10)]
    await until(lambda: len(gated.begun) == 1)
    pool.close()
    gated.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [np.ndarray] + [NotReady] * 9 == [type(answer) for answer in answers]
    with pytest.raises(NotReady):
        await pool.decode(SMALL, SECTION)


_MANY = """
import asyncio, resource, sys
from service.images.decode_pool import DecodePool
from service.images.decoding import ImageLimits
from service.model.manifest import ImageSection
from tests.support.pictures import encode
from PIL import Image
limits = ImageLimits(max_pixels=4_000_000)
section = ImageSection(height=32, width=32, resize="shortest", crop="center", interpolation="bicubic",
                       mean=(0, 0, 0), std=(1, 1, 1))
data = encode(Image.new("RGB", (2_000, 2_000), "red"), "JPEG")

async def most_mib(pictures):
    pool = DecodePool(16, limits=limits, most_waiting=100)
    await asyncio.gather(*(pool.decode(data, section) for _ in range(pictures)))
    pool.close()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

before = asyncio.run(most_mib(1))
print(asyncio.run(most_mib(32)) - before)
"""


def test_memory_does_not_grow_with_the_number_of_large_pictures() -> None:
    """Thirty-two of 4 megapixels at once, each of 16 bytes a pixel at most: one at a time by the budget, not 2 GB."""
    answer = subprocess.run([sys.executable, "-c", _MANY], capture_output=True, text=True, check=False)
    assert "" == answer.stderr
    assert 2 * 4_000_000 * 16 / 2**20 > float(answer.stdout)
