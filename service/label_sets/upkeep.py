"""What a start does for label sets: go on with what is not computed, delete what no set needs."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from service.errors import AnyclassError, StateUnavailable
from service.label_sets.storage import Head, LabelSetRecords, age_s

_LOG: Final = logging.getLogger(__name__)

_PAGE: Final = 100
_PAUSE_S: Final = 10.0
_ABANDONED_S: Final = 3_600
"""Content without a head that is this old has no writer any more: it was killed before it could delete it."""


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
