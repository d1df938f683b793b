"""When the next request may go: how a client of a busy service stays polite.

The number of requests under way grows by one with each full round of answers and is halved with each refusal (additive
increase, multiplicative decrease; Chiu and Jain 1989). No request at all goes before the time that the service asked
for.
"""

import asyncio
import heapq
import itertools
import random
from typing import Final

_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 30.0
_MOST_DOUBLINGS: Final = 6
_JITTER: Final = 0.25
"""Part of a wait that chance adds, so that several clients do not come back at the same moment."""


class Turns:
    """Turns for requests of which `most` at once are under way. Belongs to one event loop.

    Attributes:
        ever_answered: whether any request has been answered.
    """

    def __init__(self, most: int, *, patience_s: float) -> None:
        """`patience_s` is how long to go on while every answer is a refusal, in seconds."""
        self._most = most
        self._patience_s = patience_s
        self._allowed = float(most)
        self._busy = 0
        self._not_before = 0.0
        self._rounds = 0
        self._refused_since: float | None = None
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self.ever_answered = False

    @property
    def allowed(self) -> int:
        """How many requests may be under way now."""
        return max(1, int(self._allowed))

    @property
    def stalled_s(self) -> float:
        """Seconds from the first of the refusals in a row to the next attempt; 0 after an answer."""
        return 0.0 if self._refused_since is None else max(0.0, self._not_before - self._refused_since)

    async def take(self, place: int) -> None:
        """Wait for a turn; whoever has the lowest `place` is next. It ends with `answered`, `refused` or `dropped`."""
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (place, next(self._numbers), turn))
        self._give()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.dropped()
            raise

    def answered(self) -> None:
        """The service has answered."""
        self.ever_answered = True
        self._refused_since = None
        self._rounds = 0
        self._allowed = min(self._most, self._allowed + 1 / self._allowed)
        self.dropped()

    def dropped(self) -> None:
        """Nothing became of the request."""
        self._busy -= 1
        self._give()

    def refused(self, retry_after_s: float | None) -> bool:
        """The service is too busy, and says for how long if it does. Whether it is worth taking another turn."""
        now = asyncio.get_running_loop().time()
        if self._refused_since is None:
            self._refused_since = now
        if now >= self._not_before:
            # Refusals of requests that were under way together count as one.
            self._allowed = max(1.0, self._allowed / 2)
            self._rounds += 1
        wait_s = retry_after_s
        if wait_s is None:
            wait_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0 ** min(self._rounds - 1, _MOST_DOUBLINGS))
        wait_s *= 1 + _JITTER * random.random()  # noqa: S311 - no secret depends on it
        worth_it = now + wait_s - self._refused_since <= self._patience_s
        if worth_it:
            self._not_before = max(self._not_before, now + wait_s)
        self.dropped()
        return worth_it

    def _give(self) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and (wait_s := self._not_before - loop.time()) > 0:
            self._timer = loop.call_later(wait_s, self._give)
            return
        while self._waiting and self._busy < self.allowed:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                self._busy += 1
                turn.set_result(None)
