"""The decode pool: the only crossing from the event loop to the threads that decode images.

Memory is bounded by pixels, not by requests: all pictures in the threads together have at most twice `max_pixels`.
Small ones go straight through; the large ones share the rest, first come, first served in each lane, and wait for it
without holding a thread. Work of a request that has gone away is dropped where no thread has begun it.

Which image a thread decodes next is decided when it is free, so an interactive one waits for no background one that has
not begun. Without that every single request would stand behind the images that a batch has in work.
"""

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from service.errors import NotReady, Overloaded
from service.images.decoding import ImageLimits, Undecoded
from service.lanes import Lane, next_turn
from service.model.arrays import Pixels
from service.model.choices import Preprocessing
from service.model.manifest import ImageSection

T = TypeVar("T")

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
        self,
        threads: int,
        *,
        limits: ImageLimits,
        preprocessing: Preprocessing = "exact",
        most_waiting: int,
        background_every: int = 4,
    ) -> None:
        """`most_waiting` images may wait; it is for callers who do not count what they send.

        While both lanes wait the background has one turn in `background_every`, as on the device.
        """
        self.waiting = 0
        self.large_pixels = 0
        self._limits = limits
        self._preprocessing = preprocessing
        self._most_waiting = most_waiting
        self._small = limits.max_pixels // (_SMALL_SHARE * threads)
        self._most_large = 2 * limits.max_pixels - threads * self._small
        self._threads = _LaneThreads(threads, background_every)
        self._turn = {lane: asyncio.Lock() for lane in Lane}
        self._room = asyncio.Event()
        self._closed = False

    async def decode(self, data: bytes, section: ImageSection, *, lane: Lane = Lane.INTERACTIVE) -> Pixels:
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
            found = await self._run(lambda: self._begin(data, section), lane)
            if isinstance(found, Undecoded):
                found = await self._run(found.decode, lane, large_pixels=found.pixels)
            return found
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Drop what waits; what a thread has begun runs to its end, and nobody waits for it."""
        self._closed = True
        self._threads.close()

    def _begin(self, data: bytes, section: ImageSection) -> Pixels | Undecoded:
        """In a thread: check the image, and decode it where it is small."""
        image = Undecoded(data, section, self._limits, self._preprocessing)
        return image.decode() if image.pixels <= self._small else image

    async def _run(self, work: Callable[[], T], lane: Lane, *, large_pixels: int = 0) -> T:
        loop = asyncio.get_running_loop()
        await self._take(large_pixels, lane)
        try:
            self._check_open()
            running = self._threads.submit(work, lane)
        except BaseException:
            self._give(large_pixels)
            raise

        def ended(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits for room
                loop.call_soon_threadsafe(self._give, large_pixels)

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

    async def _take(self, pixels: int, lane: Lane) -> None:
        """Wait for room among the large pictures; in order, so that the largest of a lane has its turn too."""
        if not pixels:
            return
        async with self._turn[lane]:
            while self.large_pixels + pixels > self._most_large:
                self._room.clear()
                await self._room.wait()
            self.large_pixels += pixels

    def _give(self, pixels: int) -> None:
        self.large_pixels -= pixels
        self._room.set()


class _LaneThreads:
    """Threads that choose what to do next when they are free: interactive work first, background work in its turn."""

    def __init__(self, threads: int, background_every: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="anyclass-decode")
        self._background_every = background_every
        self._passed_over = 0
        self._lock = threading.Lock()
        self._waiting: dict[Lane, OrderedDict[Future[Any], Callable[[], Any]]] = {lane: OrderedDict() for lane in Lane}

    def submit(self, work: Callable[[], T], lane: Lane) -> Future[T]:
        """Have `work` done in its turn. What is cancelled before a thread begins it keeps nothing in memory."""
        future: Future[T] = Future()
        with self._lock:
            self._waiting[lane][future] = work
        # Not a closure over the future: in a cycle, it would keep its picture in memory for long after it is done.
        future.add_done_callback(partial(self._forget, lane))
        self._pool.submit(self._do_next)  # as many calls as there is work, whichever each of them finds
        return future

    def close(self) -> None:
        """Begin nothing more, and cancel what waits."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            waiting = [future for lane in self._waiting.values() for future in lane]
        for future in waiting:
            future.cancel()

    def _do_next(self) -> None:
        found = self._next()
        if found is None:
            return  # it was cancelled
        future, work = found
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as exc:  # noqa: BLE001 - raised again where it is awaited, as an executor does
            future.set_exception(exc)

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        with self._lock:
            lane, self._passed_over = next_turn(
                interactive=bool(self._waiting[Lane.INTERACTIVE]),
                background=bool(self._waiting[Lane.BACKGROUND]),
                passed_over=self._passed_over,
                background_every=self._background_every,
            )
            return self._waiting[lane].popitem(last=False) if self._waiting[lane] else None

    def _forget(self, lane: Lane, future: Future[Any]) -> None:
        with self._lock:
            self._waiting[lane].pop(future, None)
