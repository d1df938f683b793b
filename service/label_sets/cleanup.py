"""Deletes label-set content that no head names: left by a write that failed, or replaced.

`Leftovers` deletes what this process left. `Upkeep` runs at the start: it resumes sets whose vectors are missing and
deletes the content of killed processes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from itertools import chain, repeat
from typing import Any, Final

from service.errors import AnyclassError, StateUnavailable
from service.label_sets.storage import Head, LabelSetRecords, age_s

_LOG: Final = logging.getLogger(__name__)

_PAUSES_S: Final = (0.2, 1.0, 5.0, 30.0)
"""How long a store that does not answer is left alone; the last of them again and again."""
SETTLED_S: Final = 60.0
"""When a write that broke off has come to an end, one way or the other: a thread may still be at it, or a Redis that
did not answer in time."""
_PAGE: Final = 100
_PAUSE_S: Final = 10.0
_ABANDONED_S: Final = 3_600
"""Content without a head that is this old has no writer any more: it was killed before it could delete it."""


class Leftovers:
    """Deletes in the background. Belongs to one event loop.

    Attributes:
        settled_s: after how many seconds a write that broke off has come to its end.
    """

    def __init__(self, records: LabelSetRecords, *, settled_s: float = SETTLED_S) -> None:
        self._records = records
        self.settled_s = settled_s
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Whether something is yet to be deleted, or looked at."""
        return bool(self._tasks)

    def drop(self, name: str, version: str) -> None:
        """Delete the content of a version that no head names or ever will; once more when its last write has ended."""

        async def work() -> None:
            await self._keep_trying(lambda: self._records.drop(name, version))
            await asyncio.sleep(self.settled_s)
            await self._keep_trying(lambda: self._records.drop(name, version))

        self._begin(work())

    def drop_unless_current(self, name: str, *versions: str) -> None:
        """Delete the content of each version that the head does not name, when it has been settled what it names."""

        async def once() -> None:
            stored = await self._records.head(name)
            for version in versions:
                if stored is None or stored.head.version != version:
                    await self._records.drop(name, version)

        async def work() -> None:
            await asyncio.sleep(self.settled_s)
            await self._keep_trying(once)

        self._begin(work())

    async def close(self) -> None:
        """Leave the rest to a later start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="label-set-leftovers")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_trying(self, attempt: Callable[[], Awaitable[None]]) -> None:
        for pause_s in chain(_PAUSES_S, repeat(_PAUSES_S[-1])):
            try:
                await attempt()
            except StateUnavailable:
                await asyncio.sleep(pause_s)
            except AnyclassError as exc:
                _LOG.warning("content of a label set is left to a later start: %s", exc.detail)
                return
            else:
                return


class Upkeep:
    """Takes up the sets that are in the store, once it answers."""

    def __init__(self, records: LabelSetRecords, take_up: Callable[[str, Head], Awaitable[object]]) -> None:
        """`take_up` is called for each set; it has missing vectors computed."""
        self._records = records
        self._take_up = take_up

    async def run(self) -> None:
        """Go through all sets once."""
        while True:
            try:
                await self._once()
            except StateUnavailable:
                await asyncio.sleep(_PAUSE_S)
            except AnyclassError as exc:
                _LOG.warning("label sets could not be taken up: %s", exc.detail)
                return
            else:
                return

    async def _once(self) -> None:
        current: set[tuple[str, str]] = set()
        after = ""
        while names := await self._records.names(after=after, limit=_PAGE):
            for name in names:
                try:
                    stored = await self._records.head(name)
                    if stored is not None:
                        current.add((name, stored.head.version))
                        await self._take_up(name, stored.head)
                except AnyclassError as exc:
                    if isinstance(exc, StateUnavailable):
                        raise
                    _LOG.warning("a label set could not be taken up: %s", exc.detail)
            after = names[-1]
        for name, version in await self._records.contents() - current:
            if age_s(version) > _ABANDONED_S:
                await self._drop_unless_current(name, version)

    async def _drop_unless_current(self, name: str, version: str) -> None:
        stored = await self._records.head(name)
        if stored is None or stored.head.version != version:
            await self._records.drop(name, version)
