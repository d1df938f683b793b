"""The two lanes of work on a device, and the rule of turns between them."""

from enum import IntEnum
from typing import NamedTuple


class Lane(IntEnum):
    """Interactive work goes first at every batch boundary; background work is guaranteed a share of the turns."""

    INTERACTIVE = 0
    BACKGROUND = 1


class Turn(NamedTuple):
    """The lane whose turn it is, and the interactive turns in a row that waiting background work has let pass."""

    lane: Lane
    passed_over: int


def next_turn(*, interactive: bool, background: bool, passed_over: int, background_every: int) -> Turn:
    """Choose the next lane: interactive first, but background once in `background_every` turns while both wait.

    Args:
        passed_over: of the previous turn.
        background_every: at least 2.
    """
    due = background and passed_over >= background_every - 1
    if interactive and not due:
        return Turn(Lane.INTERACTIVE, passed_over + 1 if background else 0)
    return Turn(Lane.BACKGROUND, 0)
