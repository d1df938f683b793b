"""Find pictures that are near copies of others: scaled, compressed, brightened, mirrored, cropped by a tenth.

Candidates share a band: `_KEY` hash bits of the whole copy, or of its mirror image, and of a view of the original
(`views`). The bands overlap: each leaves out another two of six groups of bits, so bits of any two groups may differ. A
group holds neighbouring frequencies, which an edge at the border of a crop changes together. Of the other bits, those
of the copy that lie nearest to the threshold may differ. A band is a sorted array of numbers that hold bits and
picture; arrays that would not fit into memory are made in parts. Each copy is compared with at most `_NEIGHBOURS`
pictures of a band, those next to it in the order of the bits that are left out, so pictures without end that look alike
take no time without end.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np

from model_export.curation.progress import CurationProgress
from model_export.curation.views import POOL, VIEWS, Bits, Coded, Codes, Probes, Rows, alike, by_direction, view_codes

_KEY: Final = 24
_GROUPS: Final = 6
_LEFT_OUT: Final = tuple(itertools.combinations(range(_GROUPS), 2))
_BANDS: Final = len(_LEFT_OUT)
_FLIPPED: Final = 3
_NEIGHBOURS: Final = 32
_INDEX_BITS: Final = 64 - POOL
MOST_PICTURES: Final = 2**_INDEX_BITS

_ENTRIES: Final = 2**25
"""Entries of a band that are in memory at a time; 8 bytes each, some more while they are made."""
_BLOCK: Final = 4_096
_PAIRS: Final = 8_192
_BYTE: Final = 256

Joined = Callable[[Rows, Rows], Bits]


def near_pairs(
    near: Coded, similarity: float, scratch: Path, joined: Joined, progress: CurationProgress
) -> Iterator[Rows]:
    """Yield pairs of pictures, one a near copy of the other, ``[pairs, 2]``, each row ascending.

    Args:
        near: signatures ``[n, NEAR_BYTES]`` of pictures with contrast, in an order that follows from their contents.
        similarity: least correlation, 0 to 1.
        scratch: file for `VIEWS` × 8 bytes a picture.
        joined: returns whether two pictures are known to belong together; such pairs are left out.
        progress: of the parts of the bands.
    """
    if len(near) < 2:
        return
    codes = np.memmap(scratch, np.uint64, "w+", shape=(len(near), VIEWS))
    for rows in _blocks(len(near)):
        codes[rows] = view_codes(near[rows])
    parts = max(1, -(-len(near) * VIEWS // _ENTRIES))
    progress.begin("near copies", _BANDS * parts)
    for band in range(_BANDS):
        order = _order(band)
        for part in range(parts):
            entries = _entries(codes, order, part, parts)
            for rows in _blocks(len(near)):
                copies, others = _candidates(entries, near[rows], rows.start, order, (part, parts))
                yield from _checked(near, copies, others, similarity, joined)
            progress.advance()


def _order(band: int) -> Rows:
    """Return the hash bits in the order of a band: its own bits behind, so that they are the high ones of a number."""
    groups = np.split(by_direction(), _GROUPS)
    left_out = np.concatenate([groups[each] for each in _LEFT_OUT[band]]).tolist()
    chance = [hashlib.sha256(f"{band} {bit}".encode()).digest() for bit in range(POOL)]
    return np.array(sorted(range(POOL), key=lambda bit: (bit not in left_out, chance[bit])), np.int64)


def _ordered(codes: Codes, order: Rows) -> Codes:
    """Return codes with their bits in another order, by a table for each of their bytes."""
    places = np.empty(POOL, np.uint64)
    places[order] = np.arange(POOL, dtype=np.uint64)
    total = np.zeros_like(codes)
    values = np.arange(_BYTE, dtype=np.uint64)
    for first in range(0, POOL, 8):
        table = np.zeros(_BYTE, np.uint64)
        for bit in range(first, min(first + 8, POOL)):
            table |= (values >> np.uint64(bit - first) & np.uint64(1)) << places[bit]
        total |= table[(codes >> np.uint64(first) & np.uint64(_BYTE - 1)).astype(np.intp)]
    return total


def _part_of(ordered: Codes, parts: int) -> Rows:
    """Return the part of each code: the same for codes of the same key."""
    mixed = (ordered >> np.uint64(POOL - _KEY)) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(32)).astype(np.int64) % parts


def _entries(codes: Codes, order: Rows, part: int, parts: int) -> Codes:
    """Return a part of a band: code and picture of each view as one number, ascending."""
    found = []
    for rows in _blocks(len(codes)):
        ordered = _ordered(np.asarray(codes[rows]), order)
        entries = ordered << np.uint64(_INDEX_BITS) | np.arange(rows.start, rows.stop, dtype=np.uint64)[:, None]
        found.append(np.unique(entries[_part_of(ordered, parts) == part] if parts > 1 else entries))
    return np.sort(np.concatenate(found))


def _candidates(entries: Codes, near: Coded, first: int, order: Rows, part: tuple[int, int]) -> tuple[Rows, Rows]:
    """Return pictures of a block, and pictures with which they share the key: each int64 ``[pairs]``."""
    probes = Probes.of(near)
    ordered = _ordered(probes.codes, order)  # [block, 2]
    own = order[POOL - _KEY :]
    places = np.full(POOL, -1, np.int64)
    places[own] = np.arange(POOL - _KEY, POOL)
    doubts = places[probes.doubts]
    # The first doubts that are bits of the key; a stable sort moves them to the front.
    front = np.argsort(doubts < 0, axis=-1, kind="stable")[..., :_FLIPPED]
    doubted = np.uint64(1) << np.take_along_axis(doubts, front, -1).astype(np.uint64)  # [block, 2, _FLIPPED]
    choices = np.arange(2**_FLIPPED)[:, None] >> np.arange(_FLIPPED) & 1
    flips = (doubted[:, :, None] * choices.astype(np.uint64)).sum(axis=-1, dtype=np.uint64)  # [block, 2, 16]
    codes = (ordered[:, :, None] ^ flips).reshape(len(near), -1)
    rows = np.repeat(np.arange(first, first + len(near)), codes.shape[1])
    codes = codes.ravel()
    if part[1] > 1:
        mine = _part_of(codes, part[1]) == part[0]
        rows, codes = rows[mine], codes[mine]
    by_code = np.argsort(codes)  # neighbours in the array are looked up together
    rows, codes = rows[by_code], codes[by_code]
    rest = np.uint64(POOL - _KEY)
    low = np.searchsorted(entries, codes >> rest << np.uint64(POOL - _KEY + _INDEX_BITS))
    # The key behind the last one would not fit into 64 bits; so its end is looked up by the last code of the key.
    last = (codes >> rest << rest | np.uint64(2 ** (POOL - _KEY) - 1)) << np.uint64(_INDEX_BITS)
    high = np.searchsorted(entries, last | np.uint64(MOST_PICTURES - 1), side="right")
    some = np.flatnonzero(high > low)
    rows, low, high = rows[some], low[some], high[some]
    at = np.searchsorted(entries, codes[some] << np.uint64(_INDEX_BITS))
    low, high = np.maximum(low, at - _NEIGHBOURS // 2), np.minimum(high, at + _NEIGHBOURS // 2)
    counts = high - low
    copies = np.repeat(rows, counts)
    inner = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    others = (entries[np.repeat(low, counts) + inner] & np.uint64(MOST_PICTURES - 1)).astype(np.int64)
    pairs = np.unique(copies[copies != others] << _INDEX_BITS | others[copies != others])
    return pairs >> _INDEX_BITS, pairs & (MOST_PICTURES - 1)


def _checked(near: Coded, copies: Rows, others: Rows, similarity: float, joined: Joined) -> Iterator[Rows]:
    for start in range(0, len(copies), _PAIRS):
        mine, theirs = copies[start : start + _PAIRS], others[start : start + _PAIRS]
        apart = ~joined(mine, theirs)
        mine, theirs = mine[apart], theirs[apart]
        found = alike(near[mine], near[theirs], similarity)
        yield np.sort(np.stack([mine[found], theirs[found]], axis=1), axis=1)


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, _BLOCK):
        yield slice(start, min(start + _BLOCK, count))
