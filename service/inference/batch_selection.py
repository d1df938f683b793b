"""Selects the next batch of a device and the entries to drop: pure functions without I/O or a clock."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from service.lanes import Lane, next_turn


class Waiting(Protocol):
    """An entry as `select_batch` sees it. Entries of one batch share `group`: one model, one kind of work."""

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
    """Limits on the batches of one group. A unit is a row of length 1.

    Attributes:
        limit: largest sum of sizes.
        spare: most units of padding in a batch: as many as cost the overhead of a second batch.
        background_limit: limit on the background entries of a batch, so that interactive work that arrives while it
            runs does not wait for long; `limit` if None.
    """

    limit: int
    spare: float = float("inf")
    background_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Selection(Generic[E]):
    """A decision of `select_batch`.

    Attributes:
        batch: entries to run together, in order of arrival; empty only if no live entry waits.
        dropped: entries that were cancelled, or whose deadline has passed.
        left: all others, in order of arrival.
        full: whether more of the same group waits than fits, so that waiting longer could not improve the batch.
        lane: whose turn it was.
        passed_over: interactive batches in a row that went before waiting background work, this one included.
    """

    batch: tuple[E, ...]
    dropped: tuple[E, ...]
    left: tuple[E, ...]
    full: bool
    lane: Lane
    passed_over: int


def select_batch(
    waiting: Sequence[E],
    *,
    rules: Callable[[Any], Rules],
    now: float,
    passed_over: int = 0,
    background_every: int = 4,
) -> Selection[E]:
    """Select the next batch.

    The oldest entry of the lane whose turn it is decides the group. All others of that lane and group follow in their
    order until one does not fit. An entry whose length differs so much that padding would cost more than a second
    batch is left for that second batch. A background turn is topped up with interactive entries of its group, never
    the other way round, because that would slow the interactive ones down.

    Args:
        waiting: entries in order of arrival; one that is larger than its group's limit goes alone.
        rules: of a group.
        now: the present, on the clock of the deadlines.
        passed_over: of the previous `Selection`.
        background_every: while both lanes wait, background has one turn in so many; at least 2.
    """
    alive = [entry for entry in waiting if not entry.cancelled and entry.deadline > now]
    dropped = tuple(entry for entry in waiting if entry.cancelled or entry.deadline <= now)
    first = {lane: next((entry for entry in alive if entry.lane is lane), None) for lane in Lane}
    lane, passed_over = next_turn(
        interactive=first[Lane.INTERACTIVE] is not None,
        background=first[Lane.BACKGROUND] is not None,
        passed_over=passed_over,
        background_every=background_every,
    )
    head = first[lane]
    if head is None:
        return Selection((), dropped, (), full=False, lane=lane, passed_over=passed_over)

    ours = rules(head.group)
    background_limit = ours.background_limit or ours.limit
    chosen = _Chosen(ours)
    indices: set[int] = set()
    full = False
    for turn in (lane, Lane.INTERACTIVE) if lane is Lane.BACKGROUND else (lane,):
        limit = ours.limit if turn is Lane.INTERACTIVE else background_limit
        for index, entry in enumerate(alive):
            if entry.lane is turn and entry.group == head.group:
                if chosen.rows and chosen.rows + entry.size > limit:
                    full = True
                    break
                if chosen.add(entry.size, entry.length):
                    indices.add(index)
    return Selection(
        batch=tuple(entry for index, entry in enumerate(alive) if index in indices),
        dropped=dropped,
        left=tuple(entry for index, entry in enumerate(alive) if index not in indices),
        full=full or chosen.rows >= (background_limit if lane is Lane.BACKGROUND else ours.limit),
        lane=lane,
        passed_over=passed_over,
    )


def split_sorted(lengths: Sequence[int], rules: Rules) -> list[slice]:
    """Cut rows, sorted by length, into batches: at the limit, and where padding would cost more than a batch."""
    slices = []
    start = 0
    chosen = _Chosen(rules)
    for index, length in enumerate(lengths):
        if chosen.rows == rules.limit or not chosen.add(1, length):
            slices.append(slice(start, index))
            start = index
            chosen = _Chosen(rules)
            chosen.add(1, length)
    return [*slices, slice(start, len(lengths))] if lengths else []


class _Chosen:
    """The entries of a batch so far: their rows, their units without padding, and the longest length."""

    def __init__(self, rules: Rules) -> None:
        self._spare = rules.spare
        self.rows = 0
        self._units = 0
        self._longest = 0

    def add(self, size: int, length: int) -> bool:
        """Add an entry and return True, or return False if padding it would cost more than a batch of its own."""
        rows, units, longest = self.rows + size, self._units + size * length, max(self._longest, length)
        if self.rows and rows * longest - units > self._spare:
            return False
        self.rows, self._units, self._longest = rows, units, longest
        return True
