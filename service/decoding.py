"""The decode pool: the only crossing from the event loop to the threads that decode images.

Memory is bounded by pixels, not by requests: all pictures in the threads together have at most twice `max_pixels`.
Small ones go straight through; the large ones share the rest, first come, first served, and wait for it without holding
a thread. Work of a request that has gone away is dropped where no thread has begun it.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Final, TypeVar

from service.errors import NotReady, Overloaded
from service.images import ImageLimits, Pixels, Preprocessing, Undecoded
from service.manifest import ImageSection

T = TypeVar("T")

_IN_HAND: Final = 2
"""Images given to the threads, for each thread: one that runs and one to follow it."""
_SMALL_SHARE: Final = 4
"""A picture is small where as many as there are threads have no more pixels than `max_pixels` through this."""
_RETRY_AFTER_S: Final = 1.0


class DecodePool:
    """Decodes images for one event loop.

    Attributes:
        waiting: images given to `decode` and not answered.
        large_pixels: pixels of the large pictures being decoded, or next to be.
    """

    def __init__(
        self, threads: int, *, limits: ImageLimits, preprocessing: Preprocessing = "exact", most_waiting: int
    ) -> None:
        """`most_waiting` images may wait; it is for callers who do not count what they send."""
        self.waiting = 0
        self.large_pixels = 0
        self._limits = limits
        self._preprocessing = preprocessing
        self._most_waiting = most_waiting
        self._small = limits.max_pixels // (_SMALL_SHARE * threads)
        self._most_large = 2 * limits.max_pixels - threads * self._small
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="anyclass-decode")
        self._places = asyncio.Semaphore(_IN_HAND * threads)
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()
        self._closed = False

    async def decode(self, data: bytes, section: ImageSection) -> Pixels:
        """Turn an encoded image into the image encoder's input: uint8 `[height, width, 3]`.

        Raises:
            Overloaded: too many images wait.
            NotReady: the pool is closed.
            PayloadTooLarge, UnsupportedImageFormat, InvalidImage: as `images.decode`.
        """
        if self.waiting >= self._most_waiting:
            raise Overloaded("Too many images are waiting to be decoded; try again later.", _RETRY_AFTER_S)
        self.waiting += 1
        try:
            found = await self._run(lambda: self._begin(data, section))
            if isinstance(found, Undecoded):
                found = await self._run(found.decode, large_pixels=found.pixels)
            return found
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Drop what waits; what a thread has begun runs to its end, and nobody waits for it."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self, data: bytes, section: ImageSection) -> Pixels | Undecoded:
        """In a thread: check the image, and decode it where it is small."""
        image = Undecoded(data, section, self._limits, self._preprocessing)
        return image.decode() if image.pixels <= self._small else image

    async def _run(self, work: Callable[[], T], *, large_pixels: int = 0) -> T:
        loop = asyncio.get_running_loop()
        await self._take(large_pixels)
        with ExitStack() as taken:
            taken.callback(self._give, large_pixels)
            await self._places.acquire()
            taken.callback(self._places.release)
            self._check_open()
            running = self._threads.submit(work)
            to_give = taken.pop_all()

        def ended(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits for room
                loop.call_soon_threadsafe(to_give.close)

        # Not when this coroutine ends: a request that goes away does not stop a thread in the middle of its image.
        running.add_done_callback(ended)
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is None or not task.cancelling():  # it is the thread's work that was
                self._check_open()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise NotReady("The service is stopping; try again elsewhere.")

    async def _take(self, pixels: int) -> None:
        """Wait for room among the large pictures; in order, so that the largest has its turn too."""
        if not pixels:
            return
        async with self._turn:
            while self.large_pixels + pixels > self._most_large:
                self._room.clear()
                await self._room.wait()
            self.large_pixels += pixels

    def _give(self, pixels: int) -> None:
        self.large_pixels -= pixels
        self._room.set()
