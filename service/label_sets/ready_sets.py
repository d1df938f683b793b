"""What a request needs of a label set, near at hand: which version is current, and its matrix."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from service.errors import StateUnavailable
from service.label_sets.storage import Head, LabelSetRecords, VectorsId
from service.model.arrays import Vectors

FRESH_S: Final = 1.0
"""How long a version that was seen is taken for the current one: a change elsewhere is seen that much later."""
_PATIENCE_S: Final = 0.05
"""The most that a request which could go on with the version it knows waits for the store."""
_MAX_NAMES: Final = 1_000
_BYTES_A_LABEL: Final = 60
"""What a Python string and its place in a tuple take beside its characters."""


@dataclass(frozen=True, slots=True)
class ReadySet:
    """A label set as one model serves it.

    Attributes:
        version: of the set.
        labels: as its writer spelled them.
        vectors: float32 `[labels, dim]`, unit length. Not to be changed.
        nbytes: memory it takes.
    """

    version: str
    labels: tuple[str, ...]
    vectors: Vectors
    nbytes: int


def ready_set(version: str, labels: tuple[str, ...], vectors: Vectors) -> ReadySet:
    """Put a set together; its vectors can no longer be changed."""
    vectors.flags.writeable = False
    return ReadySet(version, labels, vectors, vectors.nbytes + sum(_BYTES_A_LABEL + len(label) for label in labels))


class ReadySets:
    """The sets used last, up to a number of bytes.

    Attributes:
        nbytes: memory that they take.
    """

    def __init__(self, max_bytes: int) -> None:
        self.nbytes = 0
        self._max_bytes = max_bytes
        self._sets: OrderedDict[VectorsId, ReadySet] = OrderedDict()

    def get(self, which: VectorsId) -> ReadySet | None:
        """Look up a set."""
        found = self._sets.get(which)
        if found is not None:
            self._sets.move_to_end(which)
        return found

    def put(self, which: VectorsId, ready: ReadySet) -> None:
        """Keep a set, and no other version of it; the one unused for longest makes room."""
        for other in [key for key in self._sets if key.name == which.name and key.version != which.version]:
            self._drop(other)
        if which in self._sets or ready.nbytes > self._max_bytes:
            return
        self._sets[which] = ready
        self.nbytes += ready.nbytes
        while self.nbytes > self._max_bytes:
            self._drop(next(iter(self._sets)))

    def forget(self, name: str) -> None:
        """Drop a set in all versions; requests that have it keep it until they end."""
        for key in [key for key in self._sets if key.name == name]:
            self._drop(key)

    def _drop(self, which: VectorsId) -> None:
        self.nbytes -= self._sets.pop(which).nbytes


@dataclass(slots=True)
class _Seen:
    head: Head
    until: float


class Heads:
    """The current version of each set in use, read from the store again once it is `FRESH_S` old.

    While the store does not answer, what was seen last is taken for current.
    """

    def __init__(self, records: LabelSetRecords, clock: Callable[[], float] = time.monotonic) -> None:
        self._records = records
        self._clock = clock
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._looking: dict[str, asyncio.Task[Head | None]] = {}

    async def get(self, name: str) -> Head | None:
        """The head of a set, None where there is no such set.

        Raises:
            StateUnavailable: the store does not answer, and nothing was seen before.
            StateCorrupt: the head is damaged.
        """
        seen = self._seen.get(name)
        if seen is not None and self._clock() < seen.until:
            return seen.head
        looking = self._looking.get(name)
        if looking is None:
            looking = self._looking[name] = asyncio.create_task(self._look(name), name="label-set-head")
            looking.add_done_callback(lambda task: self._looked(name, task))
        try:
            async with asyncio.timeout(None if seen is None else _PATIENCE_S):
                return await asyncio.shield(looking)
        except (TimeoutError, StateUnavailable):
            if seen is None:
                raise
            # One request in each interval pays for a store that is down.
            seen.until = self._clock() + FRESH_S
            return seen.head

    def put(self, name: str, head: Head) -> None:
        """Take note of what was just written or read."""
        self._seen[name] = _Seen(head, self._clock() + FRESH_S)
        self._seen.move_to_end(name)
        while len(self._seen) > _MAX_NAMES:
            self._seen.popitem(last=False)

    def forget(self, name: str) -> None:
        """Look next time."""
        self._seen.pop(name, None)

    async def close(self) -> None:
        """Stop looking."""
        tasks = list(self._looking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, name: str) -> Head | None:
        before = self._seen.get(name)
        stored = await self._records.head(name)
        seen = self._seen.get(name)
        if seen is not before:
            # Written or deleted here while the store was read: what was read may be older.
            return None if seen is None else seen.head
        if stored is None:
            self.forget(name)
            return None
        self.put(name, stored.head)
        return stored.head

    def _looked(self, name: str, task: asyncio.Task[Head | None]) -> None:
        self._looking.pop(name, None)
        if not task.cancelled():
            task.exception()  # whoever waited has raised it; nobody may have
