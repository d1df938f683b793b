"""What runs next on a device and what is dropped: one pure function that does no I/O and knows no clock."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, Protocol, TypeVar


class Lane(IntEnum):
    """Interactive work goes first at every batch boundary; background work has a floor."""

    INTERACTIVE = 0
    BACKGROUND = 1


class Waiting(Protocol):
    """What `take_batch` must know of an entry; entries of one batch share `group`: one model, one kind of work."""

    @property
    def group(self) -> Hashable: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def lane(self) -> Lane: ...  # noqa: D102
    @property
    def deadline(self) -> float: ...  # noqa: D102
    @property
    def cancelled(self) -> bool: ...  # noqa: D102


E = TypeVar("E", bound=Waiting)


@dataclass(frozen=True, slots=True)
class Take(Generic[E]):
    """What `take_batch` decided.

    Attributes:
        batch: entries to run together, in order of arrival; empty only where nothing alive waits.
        dropped: entries that nobody waits for any more, or whose deadline has passed.
        left: all others, in order of arrival.
        full: whether more of the same group waits than fits, so that waiting longer could not improve the batch.
        lane: whose turn it was.
        passed_over: how many interactive batches in a row went before waiting background work, this one included.
    """

    batch: tuple[E, ...]
    dropped: tuple[E, ...]
    left: tuple[E, ...]
    full: bool
    lane: Lane
    passed_over: int


def take_batch(
    waiting: Sequence[E], *, limit: int, now: float, passed_over: int = 0, background_every: int = 4
) -> Take[E]:
    """Choose the next batch.

    The oldest entry of the lane whose turn it is decides the group; then come all others of that lane and group in
    their order until one does not fit. A background turn is topped up with interactive entries of its group, never the
    other way round, for that would slow the interactive ones down. While both lanes wait, background has one turn in
    `background_every`.

    Args:
        waiting: entries in order of arrival, none larger than `limit`.
        limit: largest sum of sizes.
        now: the present, on the clock of the deadlines.
        passed_over: of the previous `Take`.
        background_every: at least 2.
    """
    alive = [entry for entry in waiting if not entry.cancelled and entry.deadline > now]
    dropped = tuple(entry for entry in waiting if entry.cancelled or entry.deadline <= now)
    first = {lane: next((entry for entry in alive if entry.lane is lane), None) for lane in Lane}
    background_waits = first[Lane.BACKGROUND] is not None
    background_is_due = background_waits and passed_over >= background_every - 1
    lane = Lane.BACKGROUND if first[Lane.INTERACTIVE] is None or background_is_due else Lane.INTERACTIVE
    head = first[lane]
    if head is None:
        return Take((), dropped, (), full=False, lane=lane, passed_over=0)

    chosen: set[int] = set()
    room = limit
    full = False
    for turn in (lane, Lane.INTERACTIVE) if lane is Lane.BACKGROUND else (lane,):
        for index, entry in enumerate(alive):
            if entry.lane is turn and entry.group == head.group:
                if entry.size > room:
                    full = True
                    break
                chosen.add(index)
                room -= entry.size
    return Take(
        batch=tuple(entry for index, entry in enumerate(alive) if index in chosen),
        dropped=dropped,
        left=tuple(entry for index, entry in enumerate(alive) if index not in chosen),
        full=full or room == 0,
        lane=lane,
        passed_over=passed_over + 1 if lane is Lane.INTERACTIVE and background_waits else 0,
    )
