"""Random numbers that depend on a seed and an id only: the same for any order, number of workers and machine."""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Numbers = npt.NDArray[np.uint64]

COIN_BITS: Final = 63
COINS: Final = np.uint64(2**COIN_BITS)
"""Numbers are below this; so a threshold of it lets all pass."""

_KEY_BYTES: Final = 8
_PERSON: Final = b"anyclass-balance"
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


def pair_coins(ids: pa.Array | pa.ChunkedArray, seed: int) -> Numbers:
    """Return a number below 2**63 for each id: the keyed BLAKE2b (RFC 7693) of the id.

    Args:
        ids: string or binary ``[n]``.
        seed: the key, 0 to 2**64 - 1.
    """
    start = hashlib.blake2b(digest_size=8, key=seed.to_bytes(_KEY_BYTES, "little"), person=_PERSON)
    copy, digests = start.copy, []
    for each in ids.cast(pa.large_binary()).to_pylist():
        state = copy()
        state.update(each)
        digests.append(state.digest())
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64) >> np.uint64(64 - COIN_BITS)


def query_coins(pairs: Numbers, queries: npt.NDArray[Any]) -> Numbers:
    """Return a number below 2**63 for each pair and query, independent of the others: splitmix64's mixing.

    Args:
        pairs: coin of each pair, ``[n]``.
        queries: an id for each, int ``[n]``.
    """
    with np.errstate(over="ignore"):
        mixed = pairs + (queries.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        coins: Numbers = (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(64 - COIN_BITS)
    return coins
