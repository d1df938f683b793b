"""Deletes label-set content that no head refers to, because a write failed or replaced it.

`BackgroundDeletion` deletes content of this process. `Recovery` runs at start-up: it resumes sets whose vectors are
missing, and deletes the content of killed processes.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from itertools import chain, repeat
from typing import Any, Final

from service.concurrency import cancel
from service.errors import AnyclassError, StateUnavailable
from service.label_sets.storage import Head, LabelSetStorage, age_s
from service.state.damage import DamagedEntries

_LOG: Final = logging.getLogger(__name__)

_PAUSES_S: Final = (0.2, 1.0, 5.0, 30.0)
"""Pauses between attempts while the store does not answer; the last one is repeated."""
SETTLED_S: Final = 60.0
"""Time after which an aborted write has certainly ended: a thread, or a slow Redis, may still complete it."""
_PAGE: Final = 100
_PAUSE_S: Final = 10.0
_ABANDONED_S: Final = 3_600
"""Age from which content without a head is abandoned: its writer was killed before it could delete the content."""


class BackgroundDeletion:
    """Deletes content in the background. Belongs to one event loop.

    Attributes:
        settled_s: time after which an aborted write has certainly ended.
    """

    def __init__(self, storage: LabelSetStorage, *, settled_s: float = SETTLED_S) -> None:
        self._storage = storage
        self.settled_s = settled_s
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        """Return whether a deletion is pending."""
        return bool(self._tasks)

    def delete(self, name: str, version: str) -> None:
        """Delete the content of a version that no head will refer to; repeat it once its last write has ended."""

        async def work() -> None:
            await self._keep_trying(lambda: self._storage.delete_content(name, version))
            await asyncio.sleep(self.settled_s)
            await self._keep_trying(lambda: self._storage.delete_content(name, version))

        self._begin(work())

    def delete_unless_current(self, name: str, *versions: str) -> None:
        """Delete the content of each version that is not the current one once an aborted change has ended."""

        async def work() -> None:
            await asyncio.sleep(self.settled_s)
            await self._keep_trying(lambda: self._storage.delete_unless_current(name, *versions))

        self._begin(work())

    async def close(self) -> None:
        """Cancel pending deletions; `Recovery` makes up for them at a later start."""
        await cancel(self._tasks)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="label-set-deletion")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep_trying(self, attempt: Callable[[], Awaitable[None]]) -> None:
        pauses_s = chain(_PAUSES_S, repeat(_PAUSES_S[-1]))
        await _keep_trying(attempt, pauses_s, "content of a label set is left to a later start: %s")


class Recovery:
    """Resumes the sets in the store once it answers."""

    def __init__(
        self, storage: LabelSetStorage, damaged: DamagedEntries, resume: Callable[[str, Head], Awaitable[object]]
    ) -> None:
        """Create it; `resume` is called for each set, and starts computing missing vectors."""
        self._storage = storage
        self._damaged = damaged
        self._resume = resume

    async def run(self) -> None:
        """Go through all sets once; retry while the store does not answer."""
        await _keep_trying(self._once, repeat(_PAUSE_S), "label sets could not be resumed: %s")

    async def _once(self) -> None:
        current: set[tuple[str, str]] = set()
        after = ""
        while names := await self._storage.names(after=after, limit=_PAGE):
            for name in names:
                try:
                    with self._damaged.skipped("label-set"):
                        stored = await self._storage.head(name)
                        if stored is not None:
                            current.add((name, stored.head.version))
                            await self._resume(name, stored.head)
                except AnyclassError as exc:
                    if isinstance(exc, StateUnavailable):
                        raise
                    _LOG.warning("a label set could not be resumed: %s", exc.detail)
            after = names[-1]
        for name, version in await self._storage.contents() - current:
            if age_s(version) > _ABANDONED_S:
                with self._damaged.skipped("label-set"):  # its content stays, since its head may be restored
                    await self._storage.delete_unless_current(name, version)


async def _keep_trying(attempt: Callable[[], Awaitable[None]], pauses_s: Iterable[float], given_up: str) -> None:
    """Attempt something until the store answers; log any other error as `given_up`."""
    for pause_s in pauses_s:
        try:
            return await attempt()
        except StateUnavailable:
            await asyncio.sleep(pause_s)
        except AnyclassError as exc:
            _LOG.warning(given_up, exc.detail)
            return None
    return None
