"""How many bytes all files have together, and whether there is room for more.

Files in the state store count whoever wrote them, replicas and jobs too; content that is still coming in counts in the
process that receives it. Only what clients send is ever refused: the results of a job that was accepted are written.
"""

from contextlib import suppress
from typing import Protocol

from service.errors import StateCorrupt, StateFull
from service.jobs.records import ALL, FILE_RECORDS, FileRecord, parse
from service.state.protocol import StateStore


class Arriving(Protocol):
    """Content that is coming in: what it is called in the store, and how many bytes there are so far."""

    data: str
    bytes: int


class Room:
    """Knows the size of every file: a record never changes, so each is read once. Belongs to one event loop."""

    def __init__(self, state: StateStore, max_bytes: int) -> None:
        self._state = state
        self._max_bytes = max_bytes
        self._kept: dict[str, tuple[str, int]] = {}
        self._kept_bytes = 0
        self._kept_data: set[str] = set()
        self._arriving: set[Arriving] = set()

    async def ensure(self, more: int = 0) -> None:
        """Raise StateFull where all files and `more` bytes are more than the limit, by what is in the store now."""
        await self._look()
        self._check(more)

    async def ensure_still(self) -> None:
        """The same, and quick: the store is asked only where it looks as if there were no room any more."""
        try:
            self._check(0)
        except StateFull:
            await self.ensure()

    def keep(self, key: str, data: str, size: int) -> None:
        """Take note of a file that is in the store: the key of its record, its content's name, its bytes."""
        if key not in self._kept:
            self._kept[key] = (data, size)
            self._kept_bytes += size
            self._kept_data.add(data)

    def enter(self, content: Arriving) -> None:
        """Count content from now on, as it grows."""
        self._arriving.add(content)

    def leave(self, content: Arriving) -> None:
        """Count content no longer: it is gone, or a file."""
        self._arriving.discard(content)

    async def _look(self) -> None:
        """See which files there are now. Raises StateUnavailable."""
        before = set(self._kept)
        there = await self._state.keys(FILE_RECORDS, limit=ALL)
        for key in before.difference(there):
            data, size = self._kept.pop(key, ("", 0))
            self._kept_bytes -= size
            self._kept_data.discard(data)
        for key in there:
            if key not in self._kept:
                with suppress(StateCorrupt):  # a damaged record, whose size nobody knows, keeps no client from sending
                    await self._read(key)

    def _check(self, more: int) -> None:
        # A file whose record has just been written may be among both.
        arriving = sum(each.bytes for each in self._arriving if each.data not in self._kept_data)
        if self._kept_bytes + arriving + more > self._max_bytes:
            raise StateFull(
                f"The files kept here may have {self._max_bytes} bytes together, and this one has no room among them; "
                "delete files that are no longer needed, or have ANYCLASS_MAX_TOTAL_FILE_BYTES raised."
            )

    async def _read(self, key: str) -> None:
        entry = await self._state.get(key)
        if entry is not None:
            record = parse(FileRecord, key, entry.value)
            self.keep(key, record.data, record.bytes)
