"""Back-off of a client while the service is busy.

The number of requests in flight grows by one with each full round of answers and is halved with each refusal (additive
increase, multiplicative decrease; Chiu and Jain 1989). No request is sent before the time that the service asked for.
"""

import asyncio
import heapq
import itertools
import random
from typing import Final

_FIRST_WAIT_S: Final = 0.5
_MAX_WAIT_S: Final = 30.0
_MAX_DOUBLINGS: Final = 6
_JITTER: Final = 0.25
"""Random share added to a wait, so that several clients do not retry at the same moment."""


class AdaptiveLimit:
    """Limits the requests in flight to `max_in_flight`, and to fewer while the service is busy.

    Belongs to one event loop. Each `acquire` is followed by one of `record_answer`, `record_refusal` and `release`.

    Attributes:
        ever_answered: whether the service has answered any request.
    """

    def __init__(self, max_in_flight: int, *, retry_for_s: float) -> None:
        """`retry_for_s`: seconds to go on while every answer is a refusal."""
        self._max_in_flight = max_in_flight
        self._retry_for_s = retry_for_s
        self._limit = float(max_in_flight)
        self._in_flight = 0
        self._not_before = 0.0
        self._rounds = 0
        self._refused_since: float | None = None
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self.ever_answered = False

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return max(1, int(self._limit))

    @property
    def stalled_s(self) -> float:
        """Seconds from the first of the refusals in a row to the next attempt; 0 after an answer."""
        return 0.0 if self._refused_since is None else max(0.0, self._not_before - self._refused_since)

    async def acquire(self, position: int) -> None:
        """Wait until a request may be sent; the lowest `position` is next."""
        admitted = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (position, next(self._numbers), admitted))
        self._admit()
        try:
            await admitted
        except asyncio.CancelledError:
            if admitted.done() and not admitted.cancelled():
                self.release()
            raise

    def record_answer(self) -> None:
        """Raise the limit: the service has answered."""
        self.ever_answered = True
        self._refused_since = None
        self._rounds = 0
        self._limit = min(self._max_in_flight, self._limit + 1 / self._limit)
        self.release()

    def release(self) -> None:
        """End a request without an answer or a refusal."""
        self._in_flight -= 1
        self._admit()

    def record_refusal(self, retry_after_s: float | None) -> bool:
        """Lower the limit: the service is busy. Return whether to try again.

        `retry_after_s`: the wait that the service asks for, if it names one.
        """
        now = asyncio.get_running_loop().time()
        if self._refused_since is None:
            self._refused_since = now
        if now >= self._not_before:
            # Refusals of requests that were in flight together count as one.
            self._limit = max(1.0, self._limit / 2)
            self._rounds += 1
        wait_s = retry_after_s
        if wait_s is None:
            wait_s = min(_MAX_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(self._rounds - 1, _MAX_DOUBLINGS))
        wait_s *= 1 + _JITTER * random.random()  # noqa: S311 - no secret depends on it
        worth_it = now + wait_s - self._refused_since <= self._retry_for_s
        if worth_it:
            self._not_before = max(self._not_before, now + wait_s)
        self.release()
        return worth_it

    def _admit(self) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and (wait_s := self._not_before - loop.time()) > 0:
            self._timer = loop.call_later(wait_s, self._admit)
            return
        while self._waiting and self._in_flight < self.limit:
            _, _, admitted = heapq.heappop(self._waiting)
            if not admitted.done():
                self._in_flight += 1
                admitted.set_result(None)
