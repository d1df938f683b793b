"""What runs next on a device and what is dropped: pure functions that do no I/O and know no clock."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from service.lanes import Lane


class Waiting(Protocol):
    """What `take_batch` must know of an entry; entries of one batch share `group`: one model, one kind of work."""

    @property
    def group(self) -> Hashable: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def length(self) -> int: ...  # noqa: D102
    @property
    def lane(self) -> Lane: ...  # noqa: D102
    @property
    def deadline(self) -> float: ...  # noqa: D102
    @property
    def cancelled(self) -> bool: ...  # noqa: D102


E = TypeVar("E", bound=Waiting)


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for the batches of one group. A unit is a row of length 1.

    Attributes:
        limit: largest sum of sizes.
        spare: units that cost as much as a batch does by itself; more padding than that is not worth sharing one.
        background_limit: the same for the background entries of a batch, so that interactive work that comes while it
            runs does not wait for long; `limit` where None.
        sizes: batch sizes, ascending, up to the next of which the device fills up; None where it runs any as it is.
    """

    limit: int
    spare: float = float("inf")
    background_limit: int | None = None
    sizes: tuple[int, ...] | None = None

    def padded(self, rows: int) -> int:
        """Rows that the device computes for so many."""
        return next((size for size in self.sizes or () if size >= rows), rows)


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
    waiting: Sequence[E],
    *,
    rules: Callable[[Any], Rules],
    now: float,
    passed_over: int = 0,
    background_every: int = 4,
) -> Take[E]:
    """Choose the next batch.

    The oldest entry of the lane whose turn it is decides the group; then come all others of that lane and group in
    their order until one does not fit. One whose length differs so much that padding would cost more than a second
    batch is left for that second batch. A background turn is topped up with interactive entries of its group, never
    the other way round, for that would slow the interactive ones down. While both lanes wait, background has one turn
    in `background_every`.

    Args:
        waiting: entries in order of arrival; one that is larger than its group's limit goes alone.
        rules: of a group.
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

    ours = rules(head.group)
    pool = _Pool(ours)
    chosen: list[int] = []
    full = False
    for turn in (lane, Lane.INTERACTIVE) if lane is Lane.BACKGROUND else (lane,):
        limit = ours.limit if turn is Lane.INTERACTIVE else ours.background_limit or ours.limit
        for index, entry in enumerate(alive):
            if entry.lane is turn and entry.group == head.group:
                if pool.rows and pool.rows + entry.size > limit:
                    full = True
                    break
                if pool.takes(entry.size, entry.length):
                    chosen.append(index)
    kept = set(_down_to_size(chosen, alive, ours))
    return Take(
        batch=tuple(entry for index, entry in enumerate(alive) if index in kept),
        dropped=dropped,
        left=tuple(entry for index, entry in enumerate(alive) if index not in kept),
        full=full or pool.rows >= (ours.background_limit or ours.limit if lane is Lane.BACKGROUND else ours.limit),
        lane=lane,
        passed_over=passed_over + 1 if lane is Lane.INTERACTIVE and background_waits else 0,
    )


def split_sorted(lengths: Sequence[int], rules: Rules) -> list[slice]:
    """Cut rows, sorted by length, into batches: up to the limit, and where padding would cost more than a batch."""
    slices = []
    start = 0
    pool = _Pool(rules)
    for index, length in enumerate(lengths):
        if pool.rows == rules.limit or not pool.takes(1, length):
            slices.append(slice(start, index))
            start = index
            pool = _Pool(rules)
            pool.takes(1, length)
    return [*slices, slice(start, len(lengths))] if lengths else []


class _Pool:
    """Entries gathered so far: their rows, their units without padding, and the longest length."""

    def __init__(self, rules: Rules) -> None:
        self._spare = rules.spare
        self.rows = 0
        self._units = 0
        self._longest = 0

    def takes(self, size: int, length: int) -> bool:
        """Add an entry, unless padding all of them to one length would cost more than a batch of its own."""
        rows, units, longest = self.rows + size, self._units + size * length, max(self._longest, length)
        if self.rows and rows * longest - units > self._spare:
            return False
        self.rows, self._units, self._longest = rows, units, longest
        return True


def _down_to_size(chosen: list[int], alive: Sequence[Waiting], rules: Rules) -> list[int]:
    """Leave out the last entries where filling up to the device's next size would cost more than a second batch."""
    if rules.sizes is None:
        return chosen
    rows, units, longest = 0, 0, 0
    smallest = rules.padded(alive[chosen[0]].size)
    best = 1
    for count, index in enumerate(chosen, start=1):
        entry = alive[index]
        rows, units, longest = rows + entry.size, units + entry.size * entry.length, max(longest, entry.length)
        padded = rules.padded(rows)
        # As many as go into the size that the first needs anyway, or more where that is worth its padding.
        if padded == smallest or padded * longest - units <= rules.spare:
            best = count
    return chosen[:best]
