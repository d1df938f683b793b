"""Stage ``match``: find the queries that a text contains as whole words.

Texts and queries are cut into the same parts (`word_cuts`). A query of one part is found by looking up the part. The
others are found by Aho and Corasick's automaton (1975) over the parts, each written as one character: it takes fewer
steps than an automaton over letters, and its matches begin and end at words by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from model_export.curation.query_list import QueryList
from model_export.curation.stage import QUERIES, TEXT, StageResult, digest_of, split
from model_export.curation.word_cuts import SPACE, cuts, normalise_lines
from model_export.errors import CurationError

LONGEST_TEXT: Final = 100_000
"""Bytes of a text that are searched; the rest is cut off, and the text counted."""
_VERSION: Final = 1
_NO_TEXT, _NO_QUERY, _CUT = "no text", "no query", "text cut"
_NONE: Final = -1

# Characters that stand for parts. The automaton reads UTF-8, where the first ones are shortest.
_END, _GLUE, _OTHER, _FIRST = 10, 11, 12, 13
_SURROGATES: Final = range(0xD800, 0xE000)
_MOST_PARTS: Final = 0x110000 - len(_SURROGATES) - _FIRST

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Match:
    """Adds the ids of the queries that a text contains, and drops texts with none.

    Attributes:
        queries: the list.
        keep_unmatched: keep texts without a query, with an empty list.
    """

    queries: QueryList
    keep_unmatched: bool = False
    name: str = "match"
    _search: list[Search] = field(default_factory=list, init=False, repr=False, compare=False)
    """Made when it is first needed, in each process."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_search": []}

    @property
    def digest(self) -> str:
        """Return a hash of the list and the settings."""
        settings = {"queries": self.queries.digest, "keep_unmatched": self.keep_unmatched, "longest": LONGEST_TEXT}
        return digest_of(self.name, _VERSION, settings)

    def run(self, table: pa.Table) -> StageResult:
        """Find the queries of each text."""
        if not self._search:
            self._search.append(Search([query.text for query in self.queries.queries]))
        texts = table[TEXT].cast(pa.binary())
        long = pc.greater(pc.binary_length(texts), LONGEST_TEXT)
        notes = {}
        if count := pc.sum(long).as_py() or 0:
            notes[_CUT] = count
            texts = pc.if_else(long, pc.binary_slice(texts, 0, LONGEST_TEXT), texts)
        found = self._search[0].find(pc.fill_null(texts, b""))
        unmatched = pc.equal(pc.list_value_length(found), 0)
        reasons = pc.case_when(
            pc.make_struct(pc.is_null(table[TEXT]), unmatched if not self.keep_unmatched else pa.scalar(value=False)),
            pa.scalar(_NO_TEXT),
            pa.scalar(_NO_QUERY),
        )
        if QUERIES in table.column_names:
            table = table.drop_columns([QUERIES])
        kept, dropped, _ = split(table.append_column(QUERIES, found), reasons)
        return StageResult(kept, dropped, notes)


class Search:
    """Finds queries, normalised and each another one, in many texts at once."""

    def __init__(self, queries: Sequence[str]) -> None:
        """Cut the queries, and build the automaton.

        Raises:
            CurationError: they have more different words than characters exist to stand for them.
        """
        self._count = len(queries)
        parts, rows, glued = parts_of("\n".join(queries))
        lengths = np.bincount(rows, minlength=len(queries))
        encoded = parts.dictionary_encode()
        self._parts = encoded.dictionary
        ids = encoded.indices.to_numpy().astype(np.int64)
        alone = lengths[rows] == 1
        self._single = np.full(len(self._parts) + 1, _NONE, np.int64)  # the last: a part of no query
        self._single[ids[alone]] = rows[alone]
        self._characters = np.full(len(self._parts) + 1, _OTHER, np.uint32)
        of_phrases = np.unique(ids[~alone])
        if len(of_phrases) > _MOST_PARTS:
            raise CurationError(f"the phrases have {len(of_phrases):,} different words; at most {_MOST_PARTS:,} can be")
        characters = np.arange(_FIRST, _FIRST + len(of_phrases), dtype=np.uint32)
        characters[characters >= _SURROGATES.start] += len(_SURROGATES)
        self._characters[of_phrases] = characters
        self._phrases = np.unique(rows[~alone])
        written, _ = self._written(ids[~alone], rows[~alone], glued[~alone])
        self._automaton = _automaton(written.split(chr(_END))[: len(self._phrases)])

    def find(self, texts: pa.Array | pa.ChunkedArray) -> pa.Array:
        """Return the ids of the queries in each text, ascending: list<int32> ``[texts]``.

        Args:
            texts: binary ``[texts]`` without nulls; bytes that are not UTF-8 are ignored.
        """
        lines = b"\n".join(pc.replace_substring(texts, b"\n", b" ").to_pylist()).decode("utf-8", "ignore")
        parts, rows, glued = parts_of(normalise_lines(lines))
        encoded = parts.dictionary_encode()
        known = pc.fill_null(pc.index_in(encoded.dictionary, value_set=self._parts), len(self._parts))
        ids = known.to_numpy()[encoded.indices.to_numpy()].astype(np.int64)
        queries = self._single[ids]
        hits = np.flatnonzero(queries != _NONE)
        phrases, phrase_rows = self._find_phrases(ids, rows, glued)
        keys = np.concatenate([rows[hits] * self._count + queries[hits], phrase_rows * self._count + phrases])
        keys.sort(kind="stable")  # quick where runs are sorted, as here
        keys = keys[np.append(keys[:-1] != keys[1:], True)] if len(keys) else keys
        offsets = np.searchsorted(keys, np.arange(len(texts) + 1) * self._count).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array((keys % max(1, self._count)).astype(np.int32)))

    def _find_phrases(self, ids: _Ints, rows: _Ints, glued: npt.NDArray[np.bool_]) -> tuple[_Ints, _Ints]:
        """Return query and row of each match of a query of several parts."""
        none = np.empty(0, np.int64)
        if self._automaton is None or not len(ids):
            return none, none
        written, of_rows = self._written(ids, rows, glued)
        matches = self._automaton.find_matches_as_indexes(written, overlapping=True)
        flat = np.array(matches, np.int64).reshape(-1, 3)
        return self._phrases[flat[:, 0]], of_rows[flat[:, 1]]

    def _written(self, ids: _Ints, rows: _Ints, glued: npt.NDArray[np.bool_]) -> tuple[str, _Ints]:
        """Write parts as characters: with one between parts without a space between them, and one behind a row.

        Returns:
            the text, and the row of each of its characters.
        """
        last = np.ones(len(rows), np.bool_)
        np.not_equal(rows[1:], rows[:-1], out=last[:-1])
        extra = glued | last
        places = np.arange(len(ids)) + np.cumsum(extra) - extra
        characters = np.full(len(ids) + int(extra.sum()), _GLUE, "<u4")
        characters[places] = self._characters[ids]
        characters[places[last] + 1] = _END
        return characters.tobytes().decode("utf-32-le"), np.repeat(rows, 1 + extra.astype(np.int64))


def parts_of(lines: str) -> tuple[pa.Array, _Ints, npt.NDArray[np.bool_]]:
    """Cut normalised lines into parts.

    Returns:
        the parts, string ``[parts]``, without spaces; the line of each; and whether the next one of the line follows
        without a space.
    """
    data = lines.encode()
    places, flags = cuts(lines)
    if not lines.isascii():
        codes = np.frombuffer(lines.encode("utf-32-le"), "<u4")
        widths = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
        places = (np.cumsum(widths) - widths)[places]
    offsets = np.append(places, len(data))
    if len(data) >= 2**31:
        raise CurationError("a table of texts has 2 GiB or more; take smaller tables")
    parts = pa.Array.from_buffers(
        pa.string(), len(places), [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    )
    is_part = (flags & SPACE) == 0
    ends = np.frombuffer(data, np.uint8)[places] == _END
    rows = np.cumsum(ends)[is_part]
    followed = np.append(is_part[1:], False)
    return parts.filter(pa.array(is_part)), rows, followed[is_part]


def _automaton(patterns: Sequence[str]) -> Any:  # noqa: ANN401 - its package is an extra
    if not patterns or not patterns[0]:
        return None
    from ahocorasick_rs import AhoCorasick

    return AhoCorasick(patterns)
