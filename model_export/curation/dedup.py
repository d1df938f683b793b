"""Drop copies of pictures: of a group of pictures that are the same, one stays.

`deduplicating.plan_dedup` finds the groups; the stage decides each row by its id.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from model_export.curation.coins import Numbers, pair_coins
from model_export.curation.stage import ID, StageResult, digest_of, split
from model_export.errors import CurationError

_VERSION: Final = 1
_SEEDS: Final = 2**64
_MIX: Final = 0x64656475705F3031
"""Keeps the coins apart from those of the balance, which would favour pictures with copies otherwise."""


class Method(StrEnum):
    """How copies are found, in this order."""

    EXACT = "exact"
    NEAR = "near"
    SEMANTIC = "semantic"

    @property
    def reason(self) -> str:
        """Return why a pair is dropped, as reports name it."""
        return f"{self} copy"


METHODS: Final = tuple(Method)


def methods_named(names: str) -> tuple[Method, ...]:
    """Return the methods of a list with commas, in the order of `Method`.

    Raises:
        CurationError: no method has such a name.
    """
    given = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in given if name not in METHODS]:
        raise CurationError(f"method {unknown[0]!r} is unknown; choose from {', '.join(METHODS)}")
    if not given:
        raise CurationError(f"no method: choose from {', '.join(METHODS)}")
    return tuple(method for method in METHODS if method in given)


@dataclass(frozen=True)
class DedupSettings:
    """Settings of the removal of copies.

    Attributes:
        methods: at least one.
        similarity: least correlation of near copies, 0.8 to 1.
        cosine: least cosine of the vectors of semantic copies, above 0.5.
        seed: decides among pictures of one size, below 2**64.

    Raises:
        CurationError: a value is out of range.
    """

    methods: tuple[Method, ...] = (Method.EXACT, Method.NEAR)
    similarity: float = 0.92
    cosine: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.8 <= self.similarity <= 1:
            raise CurationError(f"similarity {self.similarity}: must be from 0.8 to 1")
        if not 0.5 < self.cosine <= 1:
            raise CurationError(f"cosine {self.cosine}: must be above 0.5 and at most 1")
        if not 0 <= self.seed < _SEEDS:
            raise CurationError(f"seed {self.seed}: must be from 0 to 2^64 - 1")

    def as_json(self) -> dict[str, Any]:
        """Return what decides the result."""
        found = asdict(self)
        found["methods"] = [str(method) for method in self.methods]
        return found


def keys_of(ids: pa.Array | pa.ChunkedArray, seed: int) -> Numbers:
    """Return a number below 2**63 for each id: a keyed hash."""
    return pair_coins(ids, seed ^ _MIX)


@dataclass(frozen=True, eq=False)
class Dedup:
    """Stage that drops copies.

    Attributes:
        settings: that the copies were found with.
        keys: `keys_of` the ids that are dropped, ascending, uint64 ``[n]``.
        methods: that found each, as indices into `METHODS`, uint8 ``[n]``.
    """

    settings: DedupSettings
    keys: Numbers
    methods: npt.NDArray[np.uint8]
    name: str = field(default="dedup", init=False)

    @cached_property
    def digest(self) -> str:
        """Return a hash of version, settings and dropped ids."""
        arrays = hashlib.sha256(self.keys.astype("<u8").tobytes() + self.methods.tobytes())
        return digest_of(self.name, _VERSION, {**self.settings.as_json(), "dropped": arrays.hexdigest()})

    def run(self, table: pa.Table) -> StageResult:
        """Return the pairs whose picture is no copy of another one that stays."""
        keys = keys_of(table[ID], self.settings.seed)
        at = np.minimum(np.searchsorted(self.keys, keys), max(0, self.keys.size - 1))
        reasons = np.full(keys.size, None, dtype=object)
        if self.keys.size:
            copies = self.keys[at] == keys
            names = np.array([method.reason for method in METHODS], dtype=object)
            reasons[copies] = names[self.methods[at[copies]]]
        return split(table, pa.array(reasons, pa.string()))
