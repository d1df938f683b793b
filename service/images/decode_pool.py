"""The decode pool: the only crossing from the event loop to the threads that decode images.

Memory is limited by pixels, not by requests: all pictures in the threads together have at most twice `max_pixels`.
Small pictures start at once. Large ones share the remaining pixels, first come, first served in each lane, and wait for
them without holding a thread. Work of a cancelled request is dropped unless a thread has started it.

A thread chooses its next image when it is free, so an interactive image never waits for a background image that has not
started. Otherwise a single request would queue behind all images of a batch request.
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
from service.model.choices import ColourProfiles, Preprocessing
from service.model.manifest import ImageSection

T = TypeVar("T")

_SMALL_SHARE: Final = 4
"""A picture is small if one on each thread makes at most `max_pixels` divided by this."""
_RETRY_AFTER_S: Final = 1.0


class DecodePool:
    """Decodes images for one event loop.

    Attributes:
        waiting: images in `decode`.
        large_pixels: pixels of the large pictures being decoded or submitted.
    """

    def __init__(
        self,
        threads: int,
        *,
        limits: ImageLimits,
        preprocessing: Preprocessing = "exact",
        profiles: ColourProfiles = "ignore",
        most_waiting: int,
        background_every: int = 4,
    ) -> None:
        """Start the pool.

        Args:
            threads: images decoded at the same time.
            most_waiting: images that may wait, a limit for callers that do not count their own.
            background_every: while both lanes wait, background has one turn in so many, as on the device.
        """
        self.waiting = 0
        self.large_pixels = 0
        self._limits = limits
        self._preprocessing, self._profiles = preprocessing, profiles
        self._most_waiting = most_waiting
        self._small = limits.max_pixels // (_SMALL_SHARE * threads)
        self._most_large = 2 * limits.max_pixels - threads * self._small
        self._threads = _LaneThreads(threads, background_every)
        self._turn = {lane: asyncio.Lock() for lane in Lane}
        self._freed = asyncio.Event()
        self._closed = False

    async def decode(self, data: bytes, section: ImageSection, *, lane: Lane = Lane.INTERACTIVE) -> Pixels:
        """Turn an encoded image into the image encoder's input: uint8 `[height, width, 3]`.

        Raises:
            Overloaded: too many images wait.
            NotReady: the pool is closed.
            PayloadTooLarge, UnsupportedImageFormat, InvalidImage: as `decoding.decode`.
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
        """Drop the waiting work; do not wait for work that a thread has started."""
        self._closed = True
        self._threads.close()

    def _begin(self, data: bytes, section: ImageSection) -> Pixels | Undecoded:
        """Check the image, and decode it if it is small. Runs in a thread."""
        image = Undecoded(data, section, self._limits, self._preprocessing, self._profiles)
        return image.decode() if image.pixels <= self._small else image

    async def _run(self, work: Callable[[], T], lane: Lane, *, large_pixels: int = 0) -> T:
        loop = asyncio.get_running_loop()
        await self._acquire(large_pixels, lane)
        try:
            self._check_open()
            running = self._threads.submit(work, lane)
        except BaseException:
            self._release(large_pixels)
            raise

        def ended(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed, so no caller waits for pixels
                loop.call_soon_threadsafe(self._release, large_pixels)

        # Not at the end of this coroutine: cancelling a request does not stop a thread in the middle of its image.
        running.add_done_callback(ended)
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            if (
                task := asyncio.current_task()
            ) is None or not task.cancelling():  # the work was cancelled, not this task
                self._check_open()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise NotReady("The service is stopping; try again elsewhere.")

    async def _acquire(self, pixels: int, lane: Lane) -> None:
        """Wait for pixels among the large pictures, in order, so that the largest of a lane is not starved."""
        if not pixels:
            return
        async with self._turn[lane]:
            while self.large_pixels + pixels > self._most_large:
                self._freed.clear()
                await self._freed.wait()
            self.large_pixels += pixels

    def _release(self, pixels: int) -> None:
        self.large_pixels -= pixels
        self._freed.set()


class _LaneThreads:
    """Threads that choose their next work when they are free, by the turns of the lanes."""

    def __init__(self, threads: int, background_every: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="anyclass-decode")
        self._background_every = background_every
        self._passed_over = 0
        self._lock = threading.Lock()
        self._waiting: dict[Lane, OrderedDict[Future[Any], Callable[[], Any]]] = {lane: OrderedDict() for lane in Lane}

    def submit(self, work: Callable[[], T], lane: Lane) -> Future[T]:
        """Queue `work`. Cancelling it before a thread starts it frees its memory."""
        future: Future[T] = Future()
        with self._lock:
            self._waiting[lane][future] = work
        # No closure over the future: the cycle would keep the picture in memory long after its end.
        future.add_done_callback(partial(self._forget, lane))
        self._pool.submit(self._do_next)  # one call for each work; a call takes the next work, not this one
        return future

    def close(self) -> None:
        """Start no more work, and cancel the waiting work."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            waiting = [future for lane in self._waiting.values() for future in lane]
        for future in waiting:
            future.cancel()

    def _do_next(self) -> None:
        found = self._next()
        if found is None:
            return  # the work was cancelled
        future, work = found
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as exc:  # noqa: BLE001 - raised again to the awaiting caller, as an executor does
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
