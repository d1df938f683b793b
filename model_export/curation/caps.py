"""Find for each query the bound below which exactly t of its coins lie, in little memory and any order.

A bound is the (t+1)-th lowest coin of the pairs that are charged to the query. Coins are uniform: among c of them the
(t+1)-th lowest lies near t/c, within a few √t/c. So only coins inside a window around t/c are kept, and those below it
counted. Where the bound lies outside, which ids that repeat can cause, the query is looked at again with a window of
all coins. So bounds are exact for any data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from model_export.curation.coins import COINS, Numbers
from model_export.curation.matches import Counts, Ids

_SIGMAS: Final = 8


@dataclass(frozen=True)
class Windows:
    """Ranges of coins that are kept, for the queries that have more than t pairs.

    Attributes:
        queries: ids, ascending, ``[windows]``.
        low: first coin of each window.
        high: coin behind the last.
    """

    queries: Ids
    low: Numbers
    high: Numbers

    def slots(self, queries: int) -> Ids:
        """Return the number of each query's window, -1 where it has none: int32 ``[queries]``."""
        slots = np.full(queries, -1, np.int32)
        slots[self.queries] = np.arange(self.queries.size, dtype=np.int32)
        return slots


@dataclass(frozen=True)
class Sample:
    """Coins of some pairs that lie in windows; those of other pairs are added by `joined`.

    Attributes:
        below: number of coins below each window, int64 ``[windows]``.
        slots: window of each coin, int32 ``[coins]``.
        coins: uint64 ``[coins]``.
    """

    below: Counts
    slots: Ids
    coins: Numbers


def windows(charged: Counts, most: int) -> Windows:
    """Return the windows in which the bounds lie almost surely.

    Args:
        charged: number of pairs charged to each query.
        most: t.
    """
    queries = np.flatnonzero(charged > most)
    scale = float(COINS) / charged[queries]
    reach = _SIGMAS * (np.sqrt(most) + 1)
    low = np.maximum(0, most - reach) * scale
    high = (most + reach) * scale
    everything = high >= float(COINS)
    ends = np.where(everything, 0, high).astype(np.uint64)
    return Windows(queries.astype(np.int32), low.astype(np.uint64), np.where(everything, COINS, ends))


def whole_windows(queries: Ids) -> Windows:
    """Return windows of all coins."""
    return Windows(queries, np.zeros(queries.size, np.uint64), np.full(queries.size, COINS))


def sample(view: Windows, slots: Ids, coins: Numbers) -> Sample:
    """Take the coins that lie in windows, and count those below.

    Args:
        view: the windows.
        slots: window of each coin, ``[n]``.
        coins: ``[n]``.
    """
    below = np.bincount(slots[coins < view.low[slots]], minlength=view.queries.size)
    inside = (coins >= view.low[slots]) & (coins < view.high[slots])
    return Sample(below, slots[inside], coins[inside])


def joined(samples: Iterable[Sample], view: Windows) -> Sample:
    """Join samples of different pairs; their order does not matter."""
    parts = [Sample(np.zeros(view.queries.size, np.int64), np.zeros(0, np.int32), np.zeros(0, np.uint64)), *samples]
    below = np.sum([part.below for part in parts], axis=0)
    return Sample(below, np.concatenate([part.slots for part in parts]), np.concatenate([part.coins for part in parts]))


def bounds(view: Windows, found: Sample, most: int) -> tuple[Numbers, Ids]:
    """Return the bound of each window's query, and the queries whose bound lies outside the window.

    At most t of a query's coins are below its bound: exactly t, unless several have the bound's value.
    """
    order = np.lexsort((found.coins, found.slots))
    coins = found.coins[order]
    numbers = np.bincount(found.slots, minlength=view.queries.size)
    starts = np.cumsum(numbers) - numbers
    place = most - found.below
    inside = (place >= 0) & (place < numbers)
    result = np.zeros(view.queries.size, np.uint64)
    result[inside] = coins[(starts + place)[inside]]
    return result, view.queries[~inside]
