"""In-memory parts of label sets for requests: current versions and matrices."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from service.concurrency import cancel
from service.errors import StateUnavailable
from service.label_sets.storage import Head, LabelSetStorage, VectorsId
from service.model.answer_warnings import AnswerWarning
from service.model.arrays import Vectors

FRESH_S: Final = 1.0
"""Time for which a version that was read counts as current: changes by other processes are seen this much later."""
_LOOKUP_TIMEOUT_S: Final = 0.05
"""Timeout of the store for a request that could continue with a known version."""
_MAX_NAMES: Final = 1_000
_BYTES_A_LABEL: Final = 60
"""Memory of a string and its tuple entry, without its characters."""


@dataclass(frozen=True, slots=True)
class ReadySet:
    """A label set with the class vectors of one model.

    Attributes:
        labels: as the client spelled them.
        vectors: float32 `[labels, dim]`, unit length, read-only.
        warnings: about its labels, for that model.
    """

    version: str
    labels: tuple[str, ...]
    vectors: Vectors
    nbytes: int
    warnings: tuple[AnswerWarning, ...] = ()


def ready_set(
    version: str, labels: tuple[str, ...], vectors: Vectors, warnings: tuple[AnswerWarning, ...] = ()
) -> ReadySet:
    """Build a set; makes `vectors` read-only."""
    vectors.flags.writeable = False
    nbytes = vectors.nbytes + sum(_BYTES_A_LABEL + len(label) for label in labels)
    return ReadySet(version, labels, vectors, nbytes, warnings)


class ReadySets:
    """Keeps the most recently used sets, up to `max_bytes`."""

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
        """Store a set and drop its other versions; evict the least recently used sets if needed."""
        for other in [key for key in self._sets if key.name == which.name and key.version != which.version]:
            self._evict(other)
        if which in self._sets or ready.nbytes > self._max_bytes:
            return
        self._sets[which] = ready
        self.nbytes += ready.nbytes
        while self.nbytes > self._max_bytes:
            self._evict(next(iter(self._sets)))

    def forget(self, name: str) -> None:
        """Drop all versions of a set; requests that hold it keep it until they end."""
        for key in [key for key in self._sets if key.name == name]:
            self._evict(key)

    def _evict(self, which: VectorsId) -> None:
        self.nbytes -= self._sets.pop(which).nbytes


@dataclass(slots=True)
class _Seen:
    head: Head
    until: float


class Heads:
    """Caches the current version of each set in use, and reads it again once it is `FRESH_S` old.

    While the store does not answer, the version read last counts as current.
    """

    def __init__(self, storage: LabelSetStorage, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage = storage
        self._clock = clock
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._looking: dict[str, asyncio.Task[Head | None]] = {}

    async def get(self, name: str) -> Head | None:
        """Return the head of a set, or None if the set does not exist.

        Raises:
            StateUnavailable: the store does not answer, and no version is known.
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
            async with asyncio.timeout(None if seen is None else _LOOKUP_TIMEOUT_S):
                return await asyncio.shield(looking)
        except (TimeoutError, StateUnavailable):
            if seen is None:
                raise
            # While the store is down, only one request per interval waits for it.
            seen.until = self._clock() + FRESH_S
            return seen.head

    def put(self, name: str, head: Head) -> None:
        """Remember a head that was just written or read."""
        self._seen[name] = _Seen(head, self._clock() + FRESH_S)
        self._seen.move_to_end(name)
        while len(self._seen) > _MAX_NAMES:
            self._seen.popitem(last=False)

    def forget(self, name: str) -> None:
        """Read the store next time."""
        self._seen.pop(name, None)

    async def close(self) -> None:
        """Cancel reads under way."""
        await cancel(self._looking.values())

    async def _look(self, name: str) -> Head | None:
        before = self._seen.get(name)
        stored = await self._storage.head(name)
        seen = self._seen.get(name)
        if seen is not before:
            # Written or deleted by this process during the read, which may have returned the older head.
            return None if seen is None else seen.head
        if stored is None:
            self.forget(name)
            return None
        self.put(name, stored.head)
        return stored.head

    def _looked(self, name: str, task: asyncio.Task[Head | None]) -> None:
        self._looking.pop(name, None)
        if not task.cancelled():
            task.exception()  # retrieved in case no request waits any more; those waiting raise it
