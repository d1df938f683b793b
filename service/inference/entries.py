"""Entries in the queue of a device, and the batches made of them."""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from service.errors import AnyclassError
from service.inference.batch_execution import Inputs, Rows, Work
from service.lanes import Lane
from service.model.arrays import Vectors


@dataclass(frozen=True, slots=True)
class Done:
    """Vectors of one entry, float32 `[rows, dim]`, its time in the queue, and the run time of its batch."""

    vectors: Vectors
    queue_s: float
    run_s: float


@dataclass(eq=False, slots=True)
class Entry:
    """Rows of one kind of work that wait for their batch, and the future of their caller."""

    group: Work
    rows: Rows
    lane: Lane
    deadline: float
    future: asyncio.Future[Done]
    on_dequeued: Callable[[], None] | None
    arrived: float = field(default_factory=time.monotonic)
    length: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = 1 if self.group.length is None else self.group.length(self.rows)

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def cancelled(self) -> bool:
        """Whether the caller has gone."""
        return self.future.done()


@dataclass(eq=False, slots=True)
class Running:
    """A batch on the device, or collated to follow it: its work, its units and its start."""

    work: Work
    units: float
    started: float | None = None


@dataclass(eq=False, slots=True)
class Batch(Running):
    """Entries of one work that run together; `inputs` if they are collated already."""

    entries: tuple[Entry, ...] = ()
    inputs: Inputs | None = None


def fail(entries: Iterable[Entry], error: AnyclassError) -> None:
    """Answer every entry that is not answered yet with an error."""
    for entry in entries:
        if not entry.future.done():
            entry.future.set_exception(error)
