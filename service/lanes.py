"""The two lanes of work on a device."""

from enum import IntEnum


class Lane(IntEnum):
    """Interactive work goes first at every batch boundary; background work keeps a guaranteed share."""

    INTERACTIVE = 0
    BACKGROUND = 1
