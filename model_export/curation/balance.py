"""Balance pairs over queries: no query takes more than its share of the data set.

CLIP's data set has at most 20,000 pairs a query (Radford et al., 2021, section 2.2). Two methods:

* ``cap``: each pair is charged to its rarest query, and each query keeps the t pairs with the lowest coins;
* ``independent``: MetaCLIP's (Xu et al., "Demystifying CLIP Data", 2023, algorithm 1): each query keeps a pair with
  probability t/count, independently, and a pair stays if one of its queries keeps it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from model_export.curation.coins import COINS, Numbers, pair_coins, query_coins
from model_export.curation.matches import NONE, Counts, Matches, Rarity
from model_export.curation.stage import ID, StageResult, digest_of, split
from model_export.errors import CurationError

_VERSION: Final = 1
_SEEDS: Final = 2**64


class Method(StrEnum):
    """How pairs are chosen."""

    CAP = "cap"
    INDEPENDENT = "independent"


def method_named(name: str) -> Method:
    """Return a method by its name.

    Raises:
        CurationError: no method has this name.
    """
    try:
        return Method(name)
    except ValueError as error:
        raise CurationError(f"method {name!r} is unknown; choose {' or '.join(Method)}") from error


class Dropped(StrEnum):
    """Why a pair is dropped."""

    UNMATCHED = "unmatched"
    OVER_CAP = "over cap"
    SAMPLED_OUT = "sampled out"


@dataclass(frozen=True)
class BalanceSettings:
    """Settings of the balance.

    Attributes:
        method: `Method`.
        most: t, pairs a query.
        seed: of the coins, below 2**64.

    Raises:
        CurationError: a value is out of range.
    """

    method: Method = Method.CAP
    most: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.most < 1:
            raise CurationError(f"at most {self.most} pairs a query: must be at least 1")
        if not 0 <= self.seed < _SEEDS:
            raise CurationError(f"seed {self.seed}: must be from 0 to 2^64 - 1")

    def as_json(self) -> dict[str, Any]:
        """Return the settings for a digest."""
        return {"method": str(self.method), "most": self.most, "seed": self.seed}


@dataclass(frozen=True, eq=False)
class Balance:
    """Stage that keeps a balanced part of matched pairs; `balancing.plan_balance` makes it.

    Attributes:
        settings: method, t and seed.
        matched: pairs that each query matches, in all shards, int64 ``[queries]``.
        bounds: a query keeps a pair whose coin is below its bound, uint64 ``[queries]``; `COINS` keeps all.
    """

    settings: BalanceSettings
    matched: Counts
    bounds: Numbers
    name: str = field(default="balance", init=False)

    @cached_property
    def digest(self) -> str:
        """Return a hash of version, settings, counts and bounds."""
        arrays = hashlib.sha256(self.matched.astype("<i8").tobytes() + self.bounds.astype("<u8").tobytes())
        return digest_of(
            self.name,
            _VERSION,
            {**self.settings.as_json(), "counts": arrays.hexdigest()},
        )

    def run(self, table: pa.Table) -> StageResult:
        """Return the pairs that stay.

        Raises:
            CurationError: the pairs were not matched, or with another list.
        """
        found = Matches.of(table, self.matched.size)
        if self.settings.method is Method.CAP:
            keeps, reason = self._capped(table, found), Dropped.OVER_CAP
        else:
            keeps, reason = self._sampled(table, found), Dropped.SAMPLED_OUT
        reasons = np.full(keeps.size, None, dtype=object)
        reasons[~keeps] = str(reason)
        reasons[found.lengths == 0] = str(Dropped.UNMATCHED)
        return split(table, pa.array(reasons, pa.string()))

    def _capped(self, table: pa.Table, found: Matches) -> npt.NDArray[np.bool_]:
        """Return whether each pair is among the lowest coins of its rarest query."""
        charged = found.rarest(self._rarity)
        keeps: npt.NDArray[np.bool_] = charged != NONE
        limits = self.bounds[charged]
        tossed = np.flatnonzero(keeps & (limits < COINS))
        keeps[tossed] = self._coins(table, tossed) < limits[tossed]
        return keeps

    def _sampled(self, table: pa.Table, found: Matches) -> npt.NDArray[np.bool_]:
        """Return whether a query keeps each pair by a coin of pair and query."""
        keeps: npt.NDArray[np.bool_] = found.lengths > 0
        rows = np.flatnonzero(keeps)
        limits = self.bounds[found.queries]
        # A query with at most t pairs keeps them all, so a pair that has one needs no coin.
        lengths = found.lengths[rows]
        tossed = found.lowest(limits < COINS).astype(np.bool_)
        mine = np.repeat(tossed, lengths)
        coins = query_coins(
            np.repeat(self._coins(table, rows[tossed]), lengths[tossed]),
            found.queries[mine],
        )
        lost = Matches(found.queries[mine], lengths[tossed]).lowest(coins >= limits[mine])
        keeps[rows[tossed]] = ~lost
        return keeps

    def _coins(self, table: pa.Table, rows: npt.NDArray[np.intp]) -> Numbers:
        return pair_coins(table[ID].take(pa.array(rows)), self.settings.seed)

    @cached_property
    def _rarity(self) -> Rarity:
        return Rarity(self.matched)


def independent_bounds(matched: Counts, most: int) -> Numbers:
    """Return t/count of the range of coins for queries with more than t matches, all of it for the others."""
    bounds = np.full(matched.size, COINS)
    heads = matched > most
    bounds[heads] = (most / matched[heads] * float(COINS)).astype(np.uint64)
    return bounds
